"""Each kind of thing in learning has one registry: what is added there can be named in the settings."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.learn.models import CELLS, FRAME_NETS, SUMMARIES
from pipeline.learn.models.cells import Cell
from pipeline.learn.models.decoder import RecurrentDecoder
from pipeline.learn.models.decoder_cells import DECODERS, DecoderCell
from pipeline.learn.models.frame_nets import FrameNet
from pipeline.learn.models.summaries import Summary
from pipeline.learn.optimisation import OPTIMIZERS, PRECISIONS, SCHEDULES, MatrixPrecision
from pipeline.learn.sequences import POOLINGS, SCANS, Scan
from pipeline.learn.streaming import make_loader
from pipeline.learn.tasks import TASKS, Classification
from pipeline.learn.training import Fit, TrainConfig, fit
from tests.support.toy import make_clip, make_features, random_maps

CPU = torch.device("cpu")


class StepsAsTheyAre(nn.Module):
    """An encoder without weights."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_outputs = num_features

    def forward(self, sequence: Tensor, lengths: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return sequence


class MeanOfFrame(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_outputs = num_features

    def forward(self, steps: Tensor) -> Tensor:
        return steps.mean(dim=1)


class BackwardDecoder(RecurrentDecoder):
    """Another class than those that the registry has."""


class UpperCase(Classification):
    name: ClassVar[str] = "upper_case"
    monitors: ClassVar[dict[str, int]] = {"loss": -1}


def diagonal(maps: Tensor, _: int) -> Tensor:
    return torch.stack([maps[..., place, place] for place in range(2)], dim=-2)


def first_step(states: Tensor, _: Tensor, *, bidirectional: bool) -> Tensor:  # noqa: ARG001
    return states[:, 0]


# Of each registry: an entry, the settings that name it (NAME stands for the name), and other settings.
ENTRIES: list[tuple[dict[str, Any], object, str, dict[str, object]]] = [
    (SCANS, Scan(diagonal), "scan", {"scan_every": 2}),
    (POOLINGS, lambda maps: maps.amin(dim=(-2, -1), keepdim=True), "pooling", {}),
    (CELLS, Cell(lambda _, num_features, __: StepsAsTheyAre(num_features), label="nothing"), "cell", {}),
    (SUMMARIES, Summary(lambda _: first_step), "summary", {}),
    (
        FRAME_NETS,
        FrameNet(lambda _, steps: MeanOfFrame(steps.num_features)),
        "frame_net",
        {"scan": "rows"},
    ),
    (DECODERS, DecoderCell(partial(BackwardDecoder, nn.GRU)), "decoder.cell", {"task": "captioning"}),
    (OPTIMIZERS, lambda groups, config: torch.optim.RMSprop(groups, alpha=config.momentum), "optimizer", {}),
    (SCHEDULES, lambda done: 1 - done, "schedule", {}),
    (PRECISIONS, MatrixPrecision(torch.bfloat16), "precision", {}),
    (TASKS, UpperCase, "task", {"class_weights": "balanced", "window": 2}),
]


def config_of(key: str, value: str, others: Mapping[str, object]) -> TrainConfig:
    small = {"epochs": 2, "hidden_size": 4, "num_heads": 2, "projection": None, "batch_size": 4}
    section, _, name = key.rpartition(".")
    setting = {section: {name: value}} if section else {name: value}
    return TrainConfig.model_validate({**small, **others, **setting})


def train(config: TrainConfig, path: Path) -> Fit:
    maps = random_maps([4, 3, 5, 4, 4, 3, 5, 4], (3, 2, 2))
    clips = [
        make_clip(clip_id, label="ab"[number % 2], captions=("one two"[: 3 + 4 * (number % 2)],))
        for number, clip_id in enumerate(maps)
    ]
    task = TASKS[config.task].from_clips(clips, config)
    features = make_features(maps)
    return fit(
        task.build_model("recurrent", config, map_shape=(3, 2, 2)),
        task=task,
        train=make_loader(features, clips, config, device=CPU, shuffle_seed=0),
        val=make_loader(features, clips, config, device=CPU),
        config=config,
        device=CPU,
        state_path=path / "state.pt",
    )


@pytest.mark.parametrize(
    ("registry", "entry", "key", "others"), ENTRIES, ids=[key for _, _, key, _ in ENTRIES]
)
def test_an_entry_that_is_added_to_a_registry_trains_by_its_name(
    tmp_path, monkeypatch, registry, entry, key, others
):
    monkeypatch.setitem(registry, "mine", entry)
    result = train(config_of(key, "mine", others), tmp_path)
    losses = [metrics[split]["loss"] for metrics in result.history for split in ("train", "val")]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert len(np.unique(losses)) > 1


@pytest.mark.parametrize(
    ("registry", "entry", "key", "others"), ENTRIES, ids=[key for _, _, key, _ in ENTRIES]
)
def test_an_unknown_name_is_refused_with_all_that_the_registry_has(monkeypatch, registry, entry, key, others):
    monkeypatch.setitem(registry, "mine", entry)
    with pytest.raises(ValidationError) as caught:
        config_of(key, "yours", others)
    (problem,) = caught.value.errors()
    *first, _ = map(repr, registry)
    assert problem["loc"] == tuple(key.split("."))
    assert problem["msg"] == f"Input should be {', '.join(first)} or 'mine'"


def test_messages_that_name_a_way_out_name_entries_of_the_registry(monkeypatch):
    monkeypatch.setitem(SCANS, "my_strips", Scan(diagonal, is_strips=True))
    monkeypatch.setitem(SUMMARIES, "first", Summary(lambda _: first_step, at_every_frame=True))
    with pytest.raises(ValidationError, match="set scan to horizontal_strips, vertical_strips or my_strips"):
        config_of("scan", "frames", {"scan_size": 2})
    with pytest.raises(ValidationError, match="set summary to last or first"):
        config_of("summary", "mean", {"task": "frame_labels"})


def test_a_task_is_registered_by_its_own_name():
    assert {name: kind.name for name, kind in TASKS.items()} == {name: name for name in TASKS}
