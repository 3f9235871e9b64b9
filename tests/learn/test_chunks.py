"""A clip that is read in chunks has the answer that it has in one piece, and takes no more memory."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, NonFiniteFeaturesError
from pipeline.learn.answering import Answering, answer_batches
from pipeline.learn.models import ClipModel, build_model
from pipeline.learn.models.chunks import answer_in_chunks
from pipeline.learn.streaming import Loader, Standardisation
from pipeline.learn.tasks import FrameLabels
from pipeline.manifest import FrameLabel
from pipeline.settings.model import ModelConfig
from tests.support.features import make_contract
from tests.support.toy import make_clip, make_features, random_maps

CPU = torch.device("cpu")
SHAPE = (3, 2, 2)
NUM_FRAMES = 23
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}

CONFIGS: dict[str, dict[str, Any]] = {
    "forwards": {"bidirectional": False},
    "both ways": {},
    "three layers forwards": {"bidirectional": False, "num_layers": 3},
    "two layers both ways": {"num_layers": 2},
    "three layers both ways": {"num_layers": 3, "cell": "rnn"},
    "locations": {"scan": "locations", "cell": "gru"},
    "frame net": {"scan": "locations", "frame_net": "cell"},
    "no recurrence": {"cell": "none"},
    "mean": {"summary": "mean"},
    "max": {"summary": "max", "cell": "gru", "bidirectional": False},
    "attention": {"summary": "attention"},
    "attention among locations": {"summary": "attention", "scan": "locations", "cell": "none"},
}


def make_model(name: str = "recurrent", *, per_frame: bool, **options: Any) -> ClipModel:
    config = ModelConfig(**{"hidden_size": 5, "projection": 4, **options})
    standardisation = Standardisation(torch.full((3,), 0.5), torch.full((3,), 0.4))
    return build_model(
        name,
        config,
        map_shapes=[SHAPE],
        num_outputs=3,
        per_frame=per_frame,
        standardisations=[standardisation],
        seed=1,
    ).eval()


def assert_chunks_equal_one_piece(model: ClipModel, chunk_frames: int) -> None:
    maps = torch.randn(1, NUM_FRAMES, *SHAPE, generator=torch.Generator().manual_seed(0))
    asked = []

    def read(first: int, count: int) -> torch.Tensor:
        asked.append(count)
        assert first + count <= NUM_FRAMES
        return maps[:, first : first + count]

    found = answer_in_chunks(model, read, num_frames=NUM_FRAMES, chunk_frames=chunk_frames)
    with torch.no_grad():
        torch.testing.assert_close(found, model(maps)[0], **TOLERANCE)
    assert max(asked) == min(chunk_frames, NUM_FRAMES)


@pytest.mark.parametrize("name", CONFIGS)
def test_chunks_have_the_answer_of_one_piece(name):
    for per_frame in (False, True):
        model = make_model(per_frame=per_frame, **CONFIGS[name])
        for chunk_frames in (1, 5, 23, 40):
            assert_chunks_equal_one_piece(model, chunk_frames)


@pytest.mark.parametrize("per_frame", [False, True])
def test_so_has_the_baseline(per_frame):
    assert_chunks_equal_one_piece(make_model("baseline", per_frame=per_frame, scan="locations"), 5)


def test_a_state_that_was_not_carried_would_be_seen():
    model = make_model(per_frame=True)
    maps = torch.randn(1, NUM_FRAMES, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = torch.cat([model(chunk)[0] for chunk in maps.split(5, dim=1)])
        assert ((alone - model(maps)[0]).abs().amax(dim=1) > 1e-4).float().mean() > 0.5


def test_a_transformer_is_refused_with_the_cells_that_read_chunks():
    model = make_model(per_frame=True, cell="transformer", num_heads=1, hidden_size=6)
    with pytest.raises(
        ConfigError, match=r"'transformer' reads a clip in one piece: .*, only lstm, gru, rnn or"
    ):
        answer_in_chunks(model, lambda *_: torch.zeros(1, 1, *SHAPE), num_frames=1, chunk_frames=1)


@pytest.mark.parametrize("shuffle_seed", [None, 3])
def test_answers_about_clips_are_those_of_batches(shuffle_seed):
    maps = random_maps([9, 4], SHAPE)
    clips = [make_clip(clip_id, frame_labels=(FrameLabel(0.04, 0.12, "b"),)) for clip_id in maps]
    features, task = make_features(maps), FrameLabels(("a", "b", "c"))
    model = make_model(per_frame=True)
    expected = answer_batches(
        model, Loader(features, clips, 2, 1).epoch(), task=task, device=CPU, shuffle_seed=shuffle_seed
    )
    answering = Answering(model, task=task, device=CPU, shuffle_seed=shuffle_seed)
    for clip in clips:
        answering.add_clip(clip, features, chunk_frames=4)
    found = answering.predictions()
    assert found.clips == expected.clips
    for name in ("outputs", "targets", "frame_seconds"):
        for ours, theirs in zip(getattr(found, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE)


def test_features_that_are_not_finite_are_refused_with_the_clip():
    maps = random_maps([5], SHAPE)
    maps["c0"][4, 0, 0, 0] = np.inf
    answering = Answering(make_model(per_frame=True), task=FrameLabels(("a", "b", "c")), device=CPU)
    with pytest.raises(NonFiniteFeaturesError, match="the features of c0 have values"):
        answering.add_clip(make_clip("c0"), make_features(maps), chunk_frames=2)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


class Endless:
    """Features of clips whose names say how many frames they have: made when they are read, never kept."""

    path = Path("endless")
    contract = make_contract()
    map_shape = (1024, 1, 1)
    dtype = np.dtype(np.float16)

    def __init__(self) -> None:
        self.peak_bytes = 0

    def __contains__(self, clip_id: str) -> bool:
        return True

    def num_frames(self, clip_id: str) -> int:
        return int(clip_id)

    def frame_seconds(self, clip_id: str) -> np.ndarray:
        return np.arange(int(clip_id)) / 10

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:  # noqa: ARG002
        out[:] = np.sin(np.arange(first_frame, first_frame + len(out)))[:, None, None, None]
        self.peak_bytes = max(self.peak_bytes, resident_bytes())


def test_an_hour_takes_the_memory_of_a_minute():
    config = ModelConfig(hidden_size=4, projection=4, bidirectional=True, summary="attention")
    model = build_model("recurrent", config, map_shapes=[(1024, 1, 1)], num_outputs=2).eval()
    features = Endless()

    def peak_of(num_frames: int) -> int:
        features.peak_bytes = 0
        answering = Answering(model, task=FrameLabels(("a", "b")), device=CPU, labelled=False)
        answering.add_clip(make_clip(str(num_frames)), features, chunk_frames=256)
        return features.peak_bytes

    minute = peak_of(600)
    hour_bytes = 36_000 * 1024 * 2  # 70 MiB
    assert peak_of(36_000) - minute < hour_bytes / 4
