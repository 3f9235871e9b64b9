"""Code of the user's own that the settings name: its version, which is part of contracts, and its import."""

import hashlib
import importlib
import importlib.metadata
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pipeline.errors import ConfigError
from pipeline.system.code import file_code_digest


@dataclass(frozen=True)
class OwnCode:
    """A function of the user's own that builds a network, as the settings name it."""

    name: str  # module and function: my_package.nets:build
    arguments: Mapping[str, Any]
    path: Path | None  # the module's file, or its package's folder; None: of an installed package

    @property
    def module(self) -> str:
        """The dotted name of the module."""
        return self.name.partition(":")[0]

    def version(self) -> str:
        """The sha256 of the code in `path`, or package==version. Raises ConfigError without either.

        Comments, docstrings and blank lines leave the sha256 as it is.
        """
        if self.path is None:
            return _package_version(self.module)
        files = [self.path] if self.path.is_file() else sorted(self.path.rglob("*.py"))
        if not files:
            raise ConfigError(f"The code of {self.name}, {self.path}, is no .py file and no folder of them.")
        try:
            digests = {str(file.relative_to(self.path.parent)): file_code_digest(file) for file in files}
        except SyntaxError as error:
            raise ConfigError(f"The code of {self.name} is not Python: {error}.") from None
        return hashlib.sha256(repr(digests).encode()).hexdigest()

    def load(self) -> Callable[..., Any]:
        """Import the function, anew where `path` was edited since this process imported it.

        Raises ConfigError where it is not there, or not in `path`.
        """
        if self.path is not None:
            root = str(self._root(self.path.resolve()))
            if root not in sys.path:
                sys.path.insert(0, root)
            _forget_older(self.path.resolve(), self.version())
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise ConfigError(f"{self.name} can't be imported: {error}.") from None
        if self.path is not None and not _is_in(module, path := self.path.resolve()):
            raise ConfigError(
                f"{self.module} was imported from {module.__file__}, which is not {path}. Give one of them"
                " another name."
            )
        function = getattr(module, self.name.partition(":")[2], None)
        if not callable(function):
            raise ConfigError(f"{self.name}: the module has no such function.")
        found: Callable[..., Any] = function
        return found

    def _root(self, path: Path) -> Path:
        """The folder from which the module is imported."""
        parts = self.module.split(".")
        names = path.with_suffix("").parts
        for count in range(len(parts), 0, -1):
            if list(names[-count:]) == parts[:count]:
                return path.parents[count - 1]
        raise ConfigError(f"The module {self.module} is not in {path}.")


_imported: dict[Path, str] = {}  # the version of each code that this process has imported


def _forget_older(path: Path, version: str) -> None:
    """Have another version of the code in `path` imported anew: a Dask worker outlives edits."""
    if _imported.setdefault(path, version) != version:
        for name, module in list(sys.modules.items()):
            if _is_in(module, path):
                del sys.modules[name]
        importlib.invalidate_caches()
        _imported[path] = version


def _is_in(module: ModuleType, path: Path) -> bool:
    """Whether a module's file is `path`, or lies below this folder."""
    file = getattr(module, "__file__", None)
    return file is not None and (path == (place := Path(file).resolve()) or path in place.parents)


def _package_version(module: str) -> str:
    top = module.partition(".")[0]
    for name in importlib.metadata.packages_distributions().get(top, []):
        package = importlib.metadata.distribution(name)
        origin = json.loads(package.read_text("direct_url.json") or "{}")
        if not origin.get("dir_info", {}).get("editable"):
            return f"{name}=={package.version}"
    raise ConfigError(
        f"{module} is of no installed package, so that edits of it would not be seen. Name its file or its"
        " package's folder as `code`."
    )
