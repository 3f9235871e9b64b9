"""docs/library.md is one program: its blocks run in order, in one namespace, on a small corpus."""

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.backbone.weights import save_weights
from pipeline.manifest import Clip, write_manifest
from tests.support.extraction import random_weights
from tests.support.media import write_video

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[1] / "docs/library.md"
TRAIN = "\n## Train and evaluate\n"
SPLITS = ("train", "train", "val", "test")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with what the page's blocks read."""
    monkeypatch.chdir(tmp_path)
    clips = []
    for number in range(12):
        write_video(tmp_path / f"videos/{number:02}.mp4", num_frames=4 + number % 3, first_index=10 * number)
        label = ("left", "right")[number // 4 % 2]
        split = SPLITS[number % 4]
        clips.append(Clip(f"{number:02}", (f"{number:02}.mp4",), split=split, label=label))
    write_manifest(tmp_path / "manifest.csv", clips)
    write_video(tmp_path / "new.mp4", num_frames=5)
    weights = random_weights()
    save_weights(weights, path=tmp_path / "weights/resnet18.safetensors")


def run_blocks(text: str) -> dict[str, object]:
    """Run the page's blocks; the names that they define."""
    names: dict[str, object] = {}
    for block in re.finditer(r"```python\n(.*?)```", text, flags=re.DOTALL):
        first_line = text[: block.start(1)].count("\n")
        exec(compile("\n" * first_line + block[1], PAGE, "exec"), names)
    return names


@pytest.mark.usefixtures("corpus")
def test_the_blocks_of_the_page_run() -> None:
    names = run_blocks(PAGE.read_text())
    assert np.isfinite(names["channel_means"]).all()  # type: ignore[call-overload]
    assert len(names["losses"]) == 3  # type: ignore[arg-type]
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["baseline", "recurrent"]
    assert Path("model.pt2").is_file()
    assert Path("plots/images/comparison.png").is_file()


@pytest.mark.usefixtures("corpus")
def test_the_blocks_about_features_run_on_hdf5() -> None:
    about_features, _ = PAGE.read_text().split(TRAIN)
    text = about_features.replace('container = "zarr"', 'container = "hdf5"')
    assert text != about_features
    names = run_blocks(text)
    assert np.isfinite(names["channel_means"]).all()  # type: ignore[call-overload]
    assert len(names["dataset"]) == 12  # type: ignore[arg-type]
