"""`import pipeline`: what it offers, and what it leaves alone."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pipeline

HEAVY = ("torch", "torchvision", "zarr", "h5py", "numpy", "pyarrow", "dask", "pydantic", "matplotlib")


def modules_after(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_library_imports_nothing_heavy() -> None:
    assert not modules_after("import pipeline").intersection(HEAVY)


def test_open_features_imports_neither_torch_nor_a_container_before_it_is_needed() -> None:
    assert not modules_after("import pipeline; pipeline.open_features").intersection(
        {"torch", "zarr", "h5py", "dask", "obstore", "pipeline.store.remote"}
    )


@pytest.mark.parametrize("name", pipeline.__all__)
def test_every_name_that_the_library_offers_is_there(name: str) -> None:
    assert name in dir(pipeline)
    assert getattr(pipeline, name)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pipeline' has no attribute 'extrct'"):
        _ = pipeline.extrct


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "pipeline.__version__"}
