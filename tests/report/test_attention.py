"""Where models look in clips: weights by frame and place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.learn.checkpoint import Checkpoint, save_checkpoint
from pipeline.learn.streaming.samples import window_starts
from pipeline.manifest import Clip
from pipeline.report.attention import find_looks
from pipeline.report.page import Look
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.machine import Machine
from tests.support.checkpoints import TASKS
from tests.support.configs import live_config
from tests.support.features import MAP_SHAPE, clip_maps, frame_times, make_contract, make_view
from tests.support.toy import make_clip

LENGTHS = {"a": 3, "b": 7}
CLIPS = [make_clip(name) for name in (*LENGTHS, "without features")]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_view(tmp_path_factory.mktemp("features"), LENGTHS)


def untrained(folder: Path, task: str, **options: Any) -> Checkpoint:
    """A checkpoint in a folder, whose model looks anywhere."""
    config = live_config(task=task, tap="layer4", hidden_size=5, projection=4, **options)
    model = TASKS[task].build_model("recurrent", config, map_shapes=[MAP_SHAPE], seed=1).eval()
    checkpoint = Checkpoint("recurrent", model, TASKS[task], config, (make_contract(),), (MAP_SHAPE,), {})
    save_checkpoint(folder, checkpoint)
    return checkpoint


def looks_of(folder: Path, features: Path, clips: list[Clip] = CLIPS) -> dict[str, Look]:
    config = EvaluateConfig()
    return find_looks(folder, features, clips, config=config, machine=Machine(device="cpu"))


def weights_of(model: Any, clip_id: str, frames: slice = slice(None)) -> np.ndarray:
    """(T, P): of each step of these frames of a clip."""
    maps = torch.from_numpy(clip_maps(clip_id, LENGTHS[clip_id])[frames])
    with torch.inference_mode():
        weights: np.ndarray = model.attention(maps[None])[0].numpy()
    return weights


@pytest.mark.parametrize(
    ("scan", "shape"), [("locations", (3, 2)), ("rows", (3, 1)), ("columns", (1, 2)), ("frames", (1, 1))]
)
def test_weights_are_at_their_frames_and_places(
    tmp_path: Path, features: Path, scan: str, shape: tuple[int, int]
) -> None:
    model = untrained(tmp_path, "classification", summary="attention", scan=scan).model
    looks = looks_of(tmp_path, features)
    assert list(looks) == ["a", "b"]
    for name, look in looks.items():
        assert look.words == ("",)
        assert look.maps.shape == (1, LENGTHS[name], *shape)
        np.testing.assert_allclose(
            look.maps[0].reshape(LENGTHS[name], -1), weights_of(model, name), rtol=1e-4
        )
        np.testing.assert_array_equal(look.frame_seconds, frame_times(LENGTHS[name]))
        assert look.maps.sum() == pytest.approx(1, abs=1e-5)


def test_the_weights_of_a_clip_are_the_mean_over_its_windows(tmp_path: Path, features: Path) -> None:
    options = {"summary": "attention", "window": 4, "stride": 2}
    model = untrained(tmp_path, "classification", **options).model
    expected = np.zeros(7)
    starts = window_starts(7, window=4, stride=2)
    assert starts == [0, 2, 3]
    for start in starts:
        window = slice(start, start + 4)
        expected[window] += weights_of(model, "b", window)[:, 0] / 3
    look = looks_of(tmp_path, features)["b"]
    np.testing.assert_allclose(look.maps[0, :, 0, 0], expected, rtol=1e-4)
    assert look.maps.sum() == pytest.approx(1, abs=1e-5)


def test_each_word_of_a_caption_has_its_weights(tmp_path: Path, features: Path) -> None:
    checkpoint = untrained(tmp_path, "captioning", decoder={"inject": "attention"}, scan="locations")
    looks = looks_of(tmp_path, features)
    for name, look in looks.items():
        assert set(look.words) <= set(checkpoint.task.vocabulary.words)  # type: ignore[attr-defined]
        assert look.maps.shape == (len(look.words), LENGTHS[name], 3, 2)
        np.testing.assert_allclose(look.maps.sum(axis=(1, 2, 3)), 1, rtol=1e-4)
        assert len(look.frame_seconds) == LENGTHS[name]


def test_a_model_without_attention_looks_nowhere(tmp_path: Path, features: Path) -> None:
    untrained(tmp_path, "classification", summary="last")
    assert looks_of(tmp_path, features) == {}
