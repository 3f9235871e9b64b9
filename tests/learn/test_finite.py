"""Features and answers that are infinite or NaN: refused by the names of their clips, wherever they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.errors import NonFiniteError
from pipeline.learn.answering import answer_batches
from pipeline.learn.models.tail import TailFeatures
from pipeline.learn.streaming import Features, Loader, channel_statistics, keep_resident
from pipeline.learn.streaming.features import is_finite
from pipeline.manifest import FrameLabel, Question
from pipeline.settings.training import TrainConfig
from pipeline.store import Journal, open_view
from tests.support.checkpoints import TASKS
from tests.support.features import (
    FORMATS,
    MAP_SHAPE,
    clip_maps,
    fill_maps,
    make_contract,
    make_layout,
    publish_clips,
)
from tests.support.toy import make_clip, make_features, random_maps

CPU = torch.device("cpu")
CLIPS = [make_clip(clip_id) for clip_id in ("a", "b", "c")]
VALUES = [np.inf, -np.inf, np.nan]


def make_view(path: Path, *, value: float, dtype: str, **layout_changes: object) -> Path:
    """A view of clips of 9 frames; one value of clip b's frame 7 is `value`."""
    contract = make_contract(dtype=dtype)
    layout = make_layout(contract, **layout_changes)
    journal = Journal(path / "journal")
    maps = {clip.clip_id: clip_maps(clip.clip_id, 9, dtype=dtype) for clip in CLIPS}
    maps["b"][7, 2, 1, 1] = value
    fill_maps(journal, contract, layout, maps)
    return publish_clips(journal, contract, layout, list(maps), path / "features")


def resident(features: Features) -> Features:
    return keep_resident(features, CLIPS, limit_bytes=1 << 30)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("store", FORMATS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("kept", [resident, lambda features: features], ids=["resident", "streamed"])
def test_loaders_and_statistics_name_the_clip_whose_features_are_not_finite(
    tmp_path: Path, kept: Callable[[Features], Features], dtype: str, store: str, value: float
) -> None:
    path = make_view(tmp_path, value=value, dtype=dtype, format=store)
    with open_view(path) as view:
        features = kept(view)
        for options in ({}, {"window": 4}, {"shuffle_seed": 0}):
            loader = Loader(features, CLIPS, 3, 2, **options)
            with pytest.raises(NonFiniteError, match=rf"^{path}: the features of b have values"):
                list(loader.epoch())
        with pytest.raises(NonFiniteError, match="the features of b have values"):
            channel_statistics(features, CLIPS, pooling="max")
        sound = [clip for clip in CLIPS if clip.clip_id != "b"]
        assert len(list(Loader(view, sound, 1, 2).epoch())) == 2
        assert channel_statistics(view, sound).mean.isfinite().all()


def test_a_crop_is_looked_at_wherever_it_lies(tmp_path: Path) -> None:
    with open_view(make_view(tmp_path, value=np.nan, dtype="float16")) as view:
        loader = Loader(view, CLIPS, 3, 2, shuffle_seed=0, crop_frames=2)
        for epoch in range(20):
            (samples,) = loader.epoch_samples(epoch)
            (first,) = [sample.first_frame for sample in samples if sample.clip.clip_id == "b"]
            if first in (6, 7):
                with pytest.raises(NonFiniteError, match="the features of b have"):
                    list(loader.epoch(epoch))
                return
            list(loader.epoch(epoch))
    raise AssertionError("no crop had the frame")


def test_what_a_tail_makes_of_features_is_looked_at_too() -> None:
    maps = random_maps([3, 4], MAP_SHAPE)
    clips = [make_clip(clip_id) for clip_id in maps]
    layer = nn.Conv2d(MAP_SHAPE[0], 2, 1)
    with torch.no_grad():
        layer.weight.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="the features of c0 have values"):
        channel_statistics(TailFeatures(make_features(maps), layer, device=CPU), clips)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, -0.0, 6e4, -6e4, 6e-8, *VALUES, -np.nan])
def test_is_finite_agrees_with_torch(value: float, dtype: torch.dtype) -> None:
    values = torch.ones(3, 2, dtype=dtype)
    values[1, 1] = value
    assert is_finite(values) == bool(values.isfinite().all())


@pytest.mark.gpu
@pytest.mark.parametrize("value", VALUES)
def test_features_on_a_gpu_are_looked_at_there(value: float) -> None:
    features = make_features(random_maps([3, 4, 5], MAP_SHAPE))
    features.rows[5, 1, 0, 1] = value
    on_gpu = keep_resident(
        features, [make_clip(f"c{i}") for i in range(3)], limit_bytes=0, device=torch.device("cuda")
    )
    with pytest.raises(NonFiniteError, match="the features of c1 have values"):
        Loader(on_gpu, [make_clip("c0")], 1, 1, device=torch.device("cuda")).epoch()


def clips_of_every_task(maps: dict[str, np.ndarray]) -> list:
    return [
        make_clip(
            clip_id,
            label="left",
            values=(1.0, 2.0),
            captions=("one",),
            frame_labels=(FrameLabel(0.0, 9.0, "up"),),
            questions=(Question("which is it?", "one"),),
        )
        for clip_id in maps
    ]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("name", TASKS)
def test_answers_that_are_nan_are_refused_by_clip_for_every_task(name: str, labelled: bool) -> None:
    task = TASKS[name]
    maps = random_maps([5, 4], (2, 1, 1))
    config = TrainConfig.model_validate({"task": name, "hidden_size": 5, "projection": 8})
    model = task.build_model("recurrent", config, map_shapes=[(2, 1, 1)])
    loader = Loader(make_features(maps), clips_of_every_task(maps), 1, 1)
    answer_batches(model, loader.epoch(), task=task, device=CPU, labelled=labelled)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"answers for 2 of 2 clips are infinite or NaN: c0, c1\. Their"):
        answer_batches(model, loader.epoch(), task=task, device=CPU, labelled=labelled)


class OneIsNan(nn.Module):
    """Says nan of a sample whose first value is the largest, and of what lies after a sample's end."""

    def __init__(self, *, largest: float) -> None:
        super().__init__()
        self.largest = largest

    def forward(self, maps: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        values = maps.flatten(2)[..., :1].float().repeat(1, 1, 3)  # (B, T, 3)
        values[values == self.largest] = torch.nan
        for row, length in zip(values, lengths.tolist(), strict=True):
            row[length:] = torch.nan
        return values


def test_one_frame_that_is_nan_names_its_clip_alone_and_padding_does_not_count() -> None:
    maps = random_maps([2, 5, 3], (2, 1, 1))
    maps["c1"][3, 0] = 9
    loader = Loader(make_features(maps), clips_of_every_task(maps), 3, 1)
    options = {"task": TASKS["frame_labels"], "device": CPU}
    with pytest.raises(NonFiniteError, match="answers for 1 of 3 clips are infinite or NaN: c1"):
        answer_batches(OneIsNan(largest=9), loader.epoch(), **options)
    assert len(answer_batches(OneIsNan(largest=10), loader.epoch(), **options).clips) == 3
