"""The code that a module uses: the modules of this project that it imports, and a digest of their sources.

The sources are read, never imported. Two things stay unseen: code that only a string names, as in
`python -m stages.extraction`, and data files.
"""

import ast
import functools
import hashlib
import importlib.util
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]  # the folder of both packages, also where they are installed
_PACKAGES = ("pipeline", "stages")

_Import = tuple[str, str | None]  # a module and a name that is taken from it; None: the module as a whole

# Comments and blank lines, and what looks like them: strings, and lines after one that ends with a backslash.
# Python's own tokenizer cuts f-strings differently in each version. As up to Python 3.11, an f-string ends at
# the first quote of its kind.
_CUT = re.compile(
    rb"""
    (?P<kept>
        (?P<quote>\"{3}|'{3}|"|') (?: \\. | [^\\] )*? (?P=quote)
        |  \\\n [ \t\f]* (?: (?: \#[^\n]* )? \n )?
    )
    |  ^ [ \t\f]* (?: \#[^\n]* )? \n
    |  [ \t\f]* \#[^\n]*
    """,
    re.VERBOSE | re.MULTILINE | re.DOTALL,
)
_SEMICOLON = re.compile(rb"\A[ \t\f]*;[ \t\f]*")  # behind a docstring
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class _Source:
    digest: str
    imports: frozenset[_Import]
    exports: Mapping[str, list[_Import]]  # of a package: what each imported name stands for
    definitions: frozenset[str]  # of a package: names that it defines


def imported_modules(module: str, *, root: Path = _ROOT) -> list[str]:
    """The modules of this project that a module imports, directly or not, and the module itself; sorted.

    Imports inside functions count; those under `if TYPE_CHECKING:` do not. A name that is taken from a
    package is followed to the module that defines it, and the package's `__init__` counts only if it defines
    the name. It counts with all that it imports if the name can't be followed, or if the package itself is
    imported. Raises ValueError for a module that is not below `root`, SyntaxError for one that is not Python.
    """
    return sorted(_closure(module, root))


def module_digests(module: str, *, root: Path = _ROOT) -> dict[str, str]:
    """The sha256 of the source of each of a module's `imported_modules`, in hex.

    Comments, docstrings, blank lines and the kind of line ends leave a digest as it is; every other edit
    changes it. Python 3.10 to 3.13 give the same digest. Raises as `imported_modules` does.
    """
    return {name: source.digest for name, source in sorted(_closure(module, root).items())}


def code_digest(module: str, *, root: Path = _ROOT) -> str:
    """The sha256, in hex, of a module's code: its `module_digests` with their names."""
    return hashlib.sha256(repr(module_digests(module, root=root)).encode()).hexdigest()


def file_code_digest(path: Path) -> str:
    """The sha256 of a Python file's code, in hex, by the rule of `module_digests`. Raises SyntaxError."""
    return _parse(path.read_bytes(), path, "").digest


def _closure(module: str, root: Path) -> dict[str, _Source]:
    if _path(module, root) is None:
        raise ValueError(f"No module {module!r} of {' or '.join(_PACKAGES)} below {root}.")
    sources: dict[str, _Source] = {}
    closure: dict[str, _Source] = {}
    seen: set[_Import] = set()
    todo: list[_Import] = [(module, None)]
    while todo:
        owner, name = todo.pop()
        if (owner, name) in seen:
            continue
        seen.add((owner, name))
        part = f"{owner}.{name}" if name and _path(f"{owner}.{name}", root) else None
        todo += [(part, None)] if part else []
        if (path := _path(owner, root)) is None:
            continue
        if owner not in sources:
            sources[owner] = _parse(path.read_bytes(), path, owner)
        source = sources[owner]
        exports = source.exports.get(name or "", [])
        todo += exports
        if not (part or exports) or name in source.definitions:
            closure[owner] = source
            todo += source.imports
    return closure


def _path(module: str, root: Path) -> Path | None:
    if module.partition(".")[0] not in _PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    candidates = path / "__init__.py", path.with_suffix(".py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@functools.cache
def _parse(source: bytes, path: Path, module: str) -> _Source:
    text = importlib.util.decode_source(source)
    tree = ast.parse(text, filename=str(path))
    digest = hashlib.sha256(_normalised(text.encode(), tree)).hexdigest()
    is_package = path.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    # A package that imports lazily shows its names to type checkers alone.
    imports = list(_imports(_statements(tree.body, for_types=is_package), package))
    exports: defaultdict[str, list[_Import]] = defaultdict(list)
    definitions = set()
    if is_package:
        for name, origin in imports:
            exports[name].append(origin)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                definitions.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                definitions.add(node.id)
    return _Source(digest, frozenset(origin for _, origin in imports), exports, frozenset(definitions))


def _statements(body: Iterable[ast.AST], *, for_types: bool) -> Iterator[ast.AST]:
    """All statements, also those inside others, with or without those under `if TYPE_CHECKING:`."""
    for node in body:
        yield node
        parts = ["body", "handlers", "cases", "orelse", "finalbody"]
        if not for_types and isinstance(node, ast.If) and _last_name(node.test) == "TYPE_CHECKING":
            parts.remove("body")
        for part in parts:
            yield from _statements(getattr(node, part, ()), for_types=for_types)


def _last_name(node: ast.expr) -> str | None:
    """`name` of `name` and of `module.name`; None of every other expression."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _imports(statements: Iterable[ast.AST], package: str) -> Iterator[tuple[str, _Import]]:
    """The names that import statements bind, and what each stands for."""
    for node in statements:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname:
                    yield alias.asname, (alias.name, None)
                else:  # binds the first part, of which the others are attributes
                    first, *_ = parts = alias.name.split(".")
                    yield from ((first, (".".join(parts[: n + 1]), None)) for n in range(len(parts)))
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((alias.asname or alias.name, (origin, alias.name)) for alias in node.names)


def _normalised(source: bytes, tree: ast.Module) -> bytes:
    """A source without comments, docstrings and blank lines."""
    starts = [0, *accumulate(len(line) + 1 for line in source.split(b"\n"))]
    pieces, end = [], 0
    for node in [tree, *_statements(tree.body, for_types=True)]:
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            pieces.append(source[end : starts[docstring.lineno - 1] + docstring.col_offset])
            end = starts[(docstring.end_lineno or 0) - 1] + (docstring.end_col_offset or 0)
    code = b"".join(_SEMICOLON.sub(b"", piece) for piece in [*pieces, source[end:] + b"\n"])
    return _CUT.sub(lambda match: match["kept"] or b"", code)
