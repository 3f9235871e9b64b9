"""Importing the library changes nothing in the process of who imports it."""

import ast
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline

_PACKAGE = Path(pipeline.__file__).parent

# Other packages may change what they like: they are imported before.
_PROGRAM = """
import csv, importlib, json, logging, os, resource, signal, sys, warnings

def settings():
    import numcodecs.blosc, PIL.Image, torch
    limits = (name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {
        "PIL.Image.MAX_IMAGE_PIXELS": PIL.Image.MAX_IMAGE_PIXELS,
        "numcodecs.blosc.use_threads": numcodecs.blosc.use_threads,
        "limits of resources": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
        "threads of torch": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "signal handlers": {number.name: str(signal.getsignal(number)) for number in signal.valid_signals()
                            if isinstance(number, signal.Signals)},
        "level of logging": logging.getLogger().level,
        "handlers of logging": len(logging.getLogger().handlers),
        "filters of warnings": list(map(str, warnings.filters)),
        "environment": dict(os.environ),
        "csv.field_size_limit": csv.field_size_limit(),
    }

def imported(names):
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            if name.startswith("pipeline"):
                raise

others, own = json.load(sys.stdin)
imported(others)
before = settings()
imported(own)
print(json.dumps([before, settings()]))
"""


def settings() -> list[dict[str, object]]:
    """What a fresh process has set before and after it imports all modules of the library."""
    own = [module.name for module in pkgutil.walk_packages([str(_PACKAGE)], "pipeline.")]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps([sorted(imports_of_others()), own]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    both: list[dict[str, object]] = json.loads(done.stdout)
    return both


def imports_of_others() -> set[str]:
    names = set()
    for path in _PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name.split(".")[0] != "pipeline"}


@pytest.mark.slow
def test_importing_every_module_changes_no_setting() -> None:
    before, after = settings()
    assert len(before) == 10
    assert after == before
