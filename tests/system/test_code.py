"""The code that a module uses: which modules it imports, and which edits change their digest."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.system.code import code_digest, imported_modules, module_digests

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Writes modules below tmp_path, from {path: source}; a package's `__init__` is empty if not given."""

    def write_modules(modules: dict[str, str]) -> Path:
        for name, source in modules.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
            for folder in path.relative_to(tmp_path).parents[:-1]:
                (tmp_path / folder / "__init__.py").touch()
        return tmp_path

    return write_modules


# The package `pipeline.store` offers names of three modules and defines one itself.
STORE = {
    "pipeline/store/__init__.py": "from pipeline.store.reader import read as read\n"
    "from .writer import write as put\n"
    "from pipeline.store import format\n"
    "import pipeline.store.care as care\n"
    "def check(): ...\n"
    "LIMIT: int = 3\n",
    "pipeline/store/reader.py": "from pipeline.base import read\n",
    "pipeline/store/writer.py": "def write(): ...\n",
    "pipeline/store/care.py": "",
    "pipeline/store/format/__init__.py": "from pipeline.store.format.rows import *\n",
    "pipeline/store/format/rows.py": "",
    "pipeline/base.py": "def read(): ...\n",
    "pipeline/face.py": "",
    "pipeline/lazy/__init__.py": "from typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n"
    "    from pipeline.store import read as read\n"
    "    from pipeline.face import show as show\n"
    "def __getattr__(name): ...\n",
}
READER = {"pipeline.store.reader", "pipeline.base"}
FORMAT = {"pipeline.store.format", "pipeline.store.format.rows"}
ALL_OF_STORE = {"pipeline.store", *READER, *FORMAT, "pipeline.store.writer", "pipeline.store.care"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import os, numpy.linalg\nfrom numpy import array", set()),
        ("import pipeline.base as base", {"pipeline.base"}),
        ("from pipeline import base", {"pipeline.base"}),
        ("from pipeline.base import read", {"pipeline.base"}),
        ("from pipeline.base import *", {"pipeline.base"}),
        ("from .face import main", {"stages.face"}),
        ("from . import face", {"stages.face"}),
        ("from ..pipeline import base", None),
        # Inside functions and other statements, but not for types alone.
        ("def run():\n    from pipeline import base", {"pipeline.base"}),
        ("class A:\n    def run(self):\n        import pipeline.base as base", {"pipeline.base"}),
        ("try:\n    import torch\nexcept ImportError:\n    from pipeline import base", {"pipeline.base"}),
        ("match 1:\n    case 1:\n        from pipeline import base", {"pipeline.base"}),
        ("if TYPE_CHECKING:\n    from pipeline import base", set()),
        ("if typing.TYPE_CHECKING:\n    from pipeline import base", set()),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from pipeline import base", {"pipeline.base"}),
        ("if not TYPE_CHECKING:\n    from pipeline import base", {"pipeline.base"}),
        # Names of a package are followed to the modules that define them.
        ("from pipeline.store import read", READER),
        ("from pipeline.store import read as load", READER),
        ("from pipeline.store import put", {"pipeline.store.writer"}),
        ("from pipeline.store import care", {"pipeline.store.care"}),
        ("from pipeline.store import reader", READER),
        ("from pipeline.lazy import read", READER),
        ("from pipeline.lazy import show", {"pipeline.face"}),
        # A name that the package defines, and what can't be followed, bring all that the package imports.
        ("from pipeline.store import check", ALL_OF_STORE),
        ("from pipeline.store import LIMIT", ALL_OF_STORE),
        ("from pipeline.store import *", ALL_OF_STORE),
        ("from pipeline.store import format", FORMAT),
        ("from pipeline.store.format import num_rows", FORMAT),
        ("from pipeline.lazy import unknown", {"pipeline.lazy", "pipeline.face", *READER}),
        # So does a package that is imported itself: its names are taken as attributes.
        ("import pipeline.store as store\nstore.read()", ALL_OF_STORE),
        ("from pipeline import store\nstore.read()", ALL_OF_STORE),
        ("import pipeline.store.reader\npipeline.store.put()", {"pipeline", *ALL_OF_STORE}),
        ("import pipeline.lazy as lazy\nlazy.show()", {"pipeline.lazy", "pipeline.face", *READER}),
    ],
)
def test_imports_are_followed_to_the_modules_that_define_their_names(
    write: Callable[[dict[str, str]], Path], source: str, expected: set[str] | None
) -> None:
    root = write({**STORE, "stages/run.py": source, "stages/face.py": "", "stages/other.py": ""})
    if expected is None:
        with pytest.raises(ImportError, match="beyond top-level package"):
            imported_modules("stages.run", root=root)
    else:
        assert imported_modules("stages.run", root=root) == sorted({"stages.run", *expected})


def test_a_name_that_a_package_imports_and_changes_brings_the_package(
    write: Callable[[dict[str, str]], Path],
) -> None:
    face = "from pipeline.a.b import f\nf = cached(f)\n"
    root = write(
        {"pipeline/a/__init__.py": face, "pipeline/a/b.py": "", "stages/run.py": "from pipeline.a import f"}
    )
    assert imported_modules("stages.run", root=root) == ["pipeline.a", "pipeline.a.b", "stages.run"]


def test_modules_may_import_each_other(write: Callable[[dict[str, str]], Path]) -> None:
    root = write({"pipeline/a.py": "import pipeline.b as b", "pipeline/b.py": "from pipeline.a import f"})
    assert imported_modules("pipeline.a", root=root) == ["pipeline.a", "pipeline.b"]


def test_an_unknown_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No module 'stages\.none' of pipeline or stages below "):
        code_digest("stages.none", root=tmp_path)


def test_a_source_that_is_not_python_is_named(write: Callable[[dict[str, str]], Path]) -> None:
    with pytest.raises(SyntaxError) as caught:
        code_digest("stages.run", root=write({"stages/run.py": "def"}))
    assert caught.value.filename is not None
    assert caught.value.filename.endswith("stages/run.py")


def test_a_digest_is_over_the_names_too(write: Callable[[dict[str, str]], Path]) -> None:
    root = write({"stages/a.py": "x = 1\n", "stages/b.py": "x = 1\n"})
    (digest_a,) = module_digests("stages.a", root=root).values()
    assert module_digests("stages.b", root=root) == {"stages.b": digest_a}
    assert code_digest("stages.a", root=root) != code_digest("stages.b", root=root)


def digest(folder: Path, source: bytes | str) -> str:
    (folder / "stages").mkdir(exist_ok=True)
    (folder / "stages/a.py").write_bytes(source if isinstance(source, bytes) else source.encode())
    return code_digest("stages.a", root=folder)


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("x = 1\n", "x = 1"),
        ("x = 1\n", "# c\n\nx = 1  # d\n\n# e"),
        ("x = 1\ny = 2\n", "x = 1\r\n\r\ny = 2\r\n"),
        ("x = 1\ny = 2\n", "x = 1\n\f\n \t\ny = 2\n"),
        ("x = 1\n", '"""d"""\nx = 1\n'),
        ("x = 1\n", "'d' ' e'\nx = 1\n"),
        ("x = 1\n", "('d'  # c\n  ' e')\nx = 1\n"),
        ("x = 1\n", "r'''d\n\n#\n''' # c\nx = 1\n"),
        ("x = 1\n", "'d'; x = 1\n"),
        ("x = 1\n", "'d';\nx = 1\n"),
        ("def f(): x\n", "def f(): 'd'; x\n"),
        ("def f():\n    x\n", "def f():\n    'é'; x\n"),
        ("def f():\n    'd'\nx = 1\n", "def f():\n    '''other\n    '''\n\nx = 1\n"),
        ("class A:\n    x: int\n    y: int\n", "class A:\n    'd'\n\n    x: int  # of A\n    y: int\n"),
        ("async def f():\n    return\n", "async def f():\n    'd'\n    # c\n    return\n"),
        ("if a:\n    def f():\n        x\n", "if a:\n    def f():\n        'd'\n        x\n"),
        ("x = (1,\n  2)\n", "x = (1,  # one\n\n  # two\n  2)\n"),
        ("x = 'é'\n", "x = 'é'  # ü\n".encode("utf-8-sig")),
        ("x = 'é'\n", "# coding: latin-1\nx = 'é'\n".encode("latin-1")),
        ("x = r'\\'  '\n", "x = r'\\'  '# d'\n"),
        ('x = f"""{y}\n\n"""\n', 'x = f"""{y}\n\n"""  # "c"\n'),
    ],
)
def test_comments_docstrings_blank_lines_line_ends_and_encodings_leave_a_digest(
    tmp_path: Path, source: str, other: bytes | str
) -> None:
    assert digest(tmp_path, source) == digest(tmp_path, other)


@pytest.mark.parametrize(
    ("source", "other"),
    [
        ("x = 1\n", "x = 2\n"),
        ("x = 1\n", "x  = 1\n"),
        ("if a:\n    x\n    y\n", "if a:\n    x\ny\n"),
        ("x = '''a\nb'''\n", "x = '''a\n\nb'''\n"),
        ("x = '''a\nb'''\n", "x = '''a\n# c\nb'''\n"),
        ("x = 'a'\n", "x = 'a # c'\n"),
        ("x = 'a\\'# c'\n", "x = 'a\\'# d'\n"),
        ("x = '''\\'''# c'''\n", "x = '''\\'''# d'''\n"),
        ("x = 'a\\\n# c'\n", "x = 'a\\\n# d'\n"),
        ("x = f'{a!r:#>{n}}'\n", "x = f'{a!r:#<{n}}'\n"),
        ('x = f"""\n\n{y}"""\n', 'x = f"""\n{y}"""\n'),
        ("x = ''\n'a'\n", "x = ''\n'b'\n"),
        ("f'd'\nx = 1\n", "f'e'\nx = 1\n"),
        ("b'd'\nx = 1\n", "b'e'\nx = 1\n"),
        ("x = '#'\n", "x = '#' '#'\n"),
        # A blank line and a comment end a line that a backslash continues.
        ("x = 1 \\\n+ 2\n", "x = 1 \\\n\n+ 2\n"),
        ("x = 1 \\\n+ 2\n", "x = 1 \\\n# c\n+ 2\n"),
        ("x = 'é'\n", b"# coding: cp1251\nx = '\xe9'\n"),
    ],
)
def test_every_other_edit_moves_a_digest(tmp_path: Path, source: str, other: bytes | str) -> None:
    assert digest(tmp_path, source) != digest(tmp_path, other)


BLOCKS = [
    ["import os"],
    ["x = 'a # b'"],
    ["y = '''", "", "# c", "'''"],
    ["z = (1,", "    2)"],
    ["def f(a):", "    return a"],
    ["class A:", "    x: int = 1", "    def g(self):", '        return f"""{self}', "", '"""'],
]
IN_A_STRING = {"", "# c", "y = '''", '        return f"""{self}'}  # nothing may be added behind these
DOCUMENTED = {"def f(a):": "    ", "class A:": "    ", "    def g(self):": "        "}


@given(
    st.lists(st.sampled_from(BLOCKS), max_size=6),
    st.data(),
)
def test_comments_docstrings_and_blank_lines_may_stand_anywhere(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[list[str]], data: st.DataObject
) -> None:
    lines = [line for block in blocks for line in block]
    added = []
    for line in lines:
        if line in IN_A_STRING:
            added.append(line)
            continue
        added.append(line + data.draw(st.sampled_from(["", "  # c", "\t#'''"])))
        added += data.draw(st.lists(st.sampled_from(["", " \t", "\f", "# c", "      # '''"]), max_size=2))
        if line in DOCUMENTED and data.draw(st.booleans()):
            added.append(
                DOCUMENTED[line] + data.draw(st.sampled_from(["'d'", "'''d\n\n# d'''  # c", "''; "]))
            )
    folder = tmp_path_factory.getbasetemp()
    ast.parse("\n".join(added))
    assert digest(folder, "\n".join(added)) == digest(folder, "\n".join(lines))
    if lines:
        number = data.draw(st.integers(0, len(lines) - 1))
        edited = [*lines[:number], lines[number] + "0", *lines[number + 1 :]]
        try:
            ast.parse("\n".join(edited))
        except SyntaxError:
            return
        assert digest(folder, "\n".join(edited)) != digest(folder, "\n".join(lines))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code of this repository, in another folder."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("pipeline", "stages"):
        shutil.copytree(REPOSITORY / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_a_digest_is_the_same_where_the_code_is_installed_elsewhere(copy: Path) -> None:
    assert code_digest("stages.train", root=copy) == code_digest("stages.train")


@pytest.mark.parametrize(
    ("edited", "expected"),
    [
        ("pipeline/__init__.py", False),
        ("pipeline/extraction/run.py", False),
        ("pipeline/frames/video.py", False),
        ("pipeline/report/drawings.py", False),
        ("pipeline/store/__init__.py", False),
        ("pipeline/store/upkeep/gc.py", False),
        ("pipeline/store/upkeep/repack.py", False),
        ("stages/evaluate.py", False),
        ("pipeline/learn/models/encoder.py", True),
        ("pipeline/learn/training.py", True),
        ("pipeline/store/reader.py", True),
        ("stages/train.py", True),
    ],
)
def test_training_depends_on_the_code_that_it_imports_alone(copy: Path, edited: str, expected: bool) -> None:
    source = (copy / edited).read_text()
    (copy / edited).write_text(source + "\nEDITED = True\n")
    assert (code_digest("stages.train", root=copy) != code_digest("stages.train")) is expected
    (copy / edited).write_text(source)


def test_a_docstring_of_the_training_may_change(copy: Path) -> None:
    path = copy / "pipeline/learn/training.py"
    source = path.read_text()
    path.write_text("# A comment.\n" + source.replace('"""', '"""Really: ', 1))
    assert code_digest("stages.train", root=copy) == code_digest("stages.train")
    path.write_text(source)


def stand_alone(module: str, folder: Path) -> None:
    """Copy what `module` imports into a folder, and of other packages the imports that work there."""
    names = imported_modules(module)
    paths = {Path(REPOSITORY, *name.split(".")) for name in names}
    for path in [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in paths]:
        copied = folder / path.relative_to(REPOSITORY)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copied)
    for package in [path for path in folder.rglob("*") if path.is_dir()]:
        face = package / "__init__.py"
        if not face.exists():
            tree = ast.parse((REPOSITORY / face.relative_to(folder)).read_text())
            imports = [
                node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module in names
            ]
            face.write_text(ast.unparse(imports))


@pytest.mark.parametrize("module", ["stages.train", "stages.evaluate"])
@pytest.mark.slow
def test_nothing_is_missing_from_what_a_stage_imports(tmp_path: Path, module: str) -> None:
    stand_alone(module, tmp_path)
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "names = [name for name in sys.modules if name.startswith(('pipeline', 'stages'))]\n"
        "for name in names: print(sys.modules[name].__file__)\n"
    )
    command = [sys.executable, "-c", program, *imported_modules(module)]
    files = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout.split()
    assert {Path(file) for file in files} == {*tmp_path.rglob("*.py")}


def pythons() -> list[str]:
    """The other versions of Python that are installed, of those that must agree."""
    names = [f"python3.{minor}" for minor in range(10, 14)]
    found = [path for name in names if (path := shutil.which(name))]
    return [path for path in found if not subprocess.run([path, "-V"], capture_output=True).returncode]


def test_every_installed_python_gives_the_same_digest() -> None:
    program = "from pipeline.system.code import code_digest; print(code_digest('stages.train'), end='')"
    for python in [sys.executable, *pythons()]:
        run = subprocess.run([python, "-c", program], capture_output=True, text=True, cwd=REPOSITORY)
        assert run.stdout == code_digest("stages.train"), run.stderr
