"""Each kind of thing in learning has one registry: what is added there can be named in the settings."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pipeline.learn.member import Fit, Member
from pipeline.learn.models import MODEL_CLASSES, SUMMARIES
from pipeline.learn.models.cells import CELL_BUILDERS
from pipeline.learn.models.decoder import RecurrentDecoder
from pipeline.learn.models.decoder_cells import DECODER_BUILDERS
from pipeline.learn.models.encoder import Sequences
from pipeline.learn.models.frame_nets import FRAME_NET_BUILDERS
from pipeline.learn.optimisation import OPTIMIZER_BUILDERS, PRECISION_DTYPES, SCHEDULES
from pipeline.learn.sequences import POOLINGS, SCAN_FUNCTIONS
from pipeline.learn.streaming import make_loader
from pipeline.learn.tasks import TASK_CLASSES, Classification
from pipeline.manifest import SPLITS
from pipeline.manifest.clips import TARGETS
from pipeline.settings.evaluation import Split
from pipeline.settings.model import CELLS, FRAME_NETS, Cell, FrameNet, Summary
from pipeline.settings.optimisation import OPTIMIZERS, PRECISIONS, MatrixPrecision, Optimizer, Schedule
from pipeline.settings.scans import SCANS, Pooling, Scan
from pipeline.settings.tasks import TASKS, TaskFacts
from pipeline.settings.training import MODELS, ModelName, TrainConfig
from pipeline.settings.words import DECODERS, DecoderCell
from tests.support.configs import live_config
from tests.support.every_training import train_alone
from tests.support.toy import make_clip, make_features, random_maps

CPU = torch.device("cpu")


class StepsAsTheyAre(nn.Module):
    """An encoder without weights."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_outputs = num_features

    def forward(self, sequences: Sequences) -> Tensor:
        return sequences.steps


class MeanOfFrame(nn.Module):
    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_outputs = num_features

    def forward(self, steps: Tensor) -> Tensor:
        return steps.mean(dim=1)


class BackwardDecoder(RecurrentDecoder):
    """Another class than those that the registry has."""


class Mine(Classification):
    name: ClassVar[str] = "mine"


def diagonal(maps: Tensor, _: int) -> Tensor:
    return torch.stack([maps[..., place, place] for place in range(2)], dim=-2)


# Of each choice: the facts and the code of a new entry, where they are registered, the settings that name it,
# and other settings.
ENTRIES: list[tuple[dict[str, Any], object, dict[str, Any], object, str, dict[str, object]]] = [
    (SCANS, Scan(), SCAN_FUNCTIONS, diagonal, "scan", {"scan_every": 2}),
    (
        CELLS,
        Cell("nothing", has_layers=False),
        CELL_BUILDERS,
        lambda _, num_features, __: StepsAsTheyAre(num_features),
        "cell",
        {},
    ),
    (
        FRAME_NETS,
        FrameNet(),
        FRAME_NET_BUILDERS,
        lambda _, steps: MeanOfFrame(steps.num_features),
        "frame_net",
        {"scan": "rows"},
    ),
    (
        DECODERS,
        DecoderCell(),
        DECODER_BUILDERS,
        partial(BackwardDecoder, nn.GRU),
        "decoder.cell",
        {"task": "captioning"},
    ),
    (
        OPTIMIZERS,
        Optimizer(has_momentum=True),
        OPTIMIZER_BUILDERS,
        lambda groups, config: torch.optim.RMSprop(groups, alpha=config.momentum),
        "optimizer",
        {"momentum": 0.8},
    ),
    (PRECISIONS, MatrixPrecision(), PRECISION_DTYPES, torch.bfloat16, "precision", {}),
    (
        TASKS,
        TaskFacts("label", "loss", {"loss": -1}, has_classes=True),
        TASK_CLASSES,
        Mine,
        "task",
        {"class_weights": "balanced", "window": 2},
    ),
]
IDS = [key for *_, key, _ in ENTRIES]


def config_of(key: str, value: str, others: Mapping[str, object]) -> TrainConfig:
    small = {"epochs": 2, "hidden_size": 4, "num_heads": 2, "projection": None, "batch_size": 4}
    section, _, name = key.rpartition(".")
    setting = {section: {name: value}} if section else {name: value}
    return live_config(**{**small, **others, **setting})


def train(config: TrainConfig, path: Path) -> Fit:
    maps = random_maps([4, 3, 5, 4, 4, 3, 5, 4], (3, 2, 2))
    clips = [
        make_clip(clip_id, label="ab"[number % 2], captions=("one two"[: 3 + 4 * (number % 2)],))
        for number, clip_id in enumerate(maps)
    ]
    task = TASK_CLASSES[config.task].from_clips(clips, config)
    features = make_features(maps)
    return train_alone(
        Member(
            task.build_model("recurrent", config, map_shapes=[(3, 2, 2)]),
            task=task,
            train=make_loader(features, clips, config, device=CPU, shuffle_seed=0),
            val=make_loader(features, clips, config, device=CPU),
            config=config,
            device=CPU,
            state_path=path / "state.pt",
        )
    )


@pytest.mark.parametrize(("facts", "fact", "registry", "entry", "key", "others"), ENTRIES, ids=IDS)
def test_an_entry_that_is_added_to_a_registry_trains_by_its_name(
    tmp_path, monkeypatch, facts, fact, registry, entry, key, others
):
    monkeypatch.setitem(facts, "mine", fact)
    monkeypatch.setitem(registry, "mine", entry)
    result = train(config_of(key, "mine", others), tmp_path)
    losses = [metrics[split]["loss"] for metrics in result.history for split in ("train", "val")]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert len(np.unique(losses)) > 1


@pytest.mark.parametrize(
    ("facts", "fact", "key", "others"), [entry[:2] + entry[4:] for entry in ENTRIES], ids=IDS
)
def test_an_unknown_name_is_refused_with_all_that_there_are(monkeypatch, facts, fact, key, others):
    monkeypatch.setitem(facts, "mine", fact)
    with pytest.raises(ValidationError) as caught:
        config_of(key, "yours", others)
    (problem,) = caught.value.errors()
    *first, _ = map(repr, facts)
    assert problem["loc"] == tuple(key.split("."))
    assert problem["msg"] == f"Input should be {', '.join(first)} or 'mine'"


def test_each_choice_of_the_settings_has_its_code_and_no_other_has():
    for facts, _, registry, *_ in ENTRIES:
        assert list(facts) == list(registry)
    assert list(get_args(Pooling)) == list(POOLINGS)
    assert list(get_args(Summary)) == list(SUMMARIES)
    assert list(get_args(Schedule)) == list(SCHEDULES)
    assert list(get_args(ModelName)) == list(MODELS) == list(MODEL_CLASSES)
    assert list(get_args(Split)) == list(SPLITS)


def test_a_task_is_registered_by_its_own_name_and_its_column_is_a_target():
    assert {name: kind.name for name, kind in TASK_CLASSES.items()} == {name: name for name in TASKS}
    assert {facts.column for facts in TASKS.values()} == set(TARGETS)
