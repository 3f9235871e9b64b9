"""Small trainings of every kind: all tasks, cells, scans and optimizers, on eight clips."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.contract import CENTER
from pipeline.learn.member import Fit, Member, Metrics
from pipeline.learn.models.tail import TailFeatures
from pipeline.learn.streaming import Features, FusedFeatures, channel_statistics, make_loader
from pipeline.learn.tasks import TASK_CLASSES, Task
from pipeline.learn.training import fit_many
from pipeline.manifest import Clip, FrameLabel, Question
from pipeline.settings.training import ModelName, TrainConfig
from tests.support.toy import make_clip, make_features, random_maps

CPU = torch.device("cpu")
SHAPE = (3, 4, 2)
LENGTHS = [3, 5, 4, 6, 5, 3, 6, 4]
MAPS = random_maps(LENGTHS, SHAPE)
OTHER = random_maps(LENGTHS, (2, 1, 3), seed=2)  # of another tap
FLIPPED = random_maps(LENGTHS, SHAPE, seed=1)  # of another view
CAPTIONS = ("a b", "b a", "a b c", "a")
SMALL = {"hidden_size": 8, "num_heads": 2, "projection": 4, "batch_size": 4, "epochs": 2}
SMALL_WORDS = {
    "decoder": {"hidden_size": 8, "num_heads": 2, "embedding_size": 5},
    "question": {"hidden_size": 5, "embedding_size": 4, "joint_size": 6},
    "words": {"max_words": 4},
}
SAMPLING = {"scheduled_sampling": 0.5, "scheduled_sampling_steps": 2}

WORSE = "epochs that get worse"
CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    WORSE: {
        "task": "regression",
        "epochs": 8,
        "learning_rate": 0.02,
        "schedule": "constant",
        "patience": None,
        "seed": 1,
    },
    "strips": {"scan": "horizontal_strips", "scan_size": 2, "optimizer": "sgd", "cell": "gru"},
    "rows and windows": {"scan": "rows", "window": 3, "cell": "rnn", "summary": "mean"},
    "pooled locations": {"scan": "locations", "pooling": "avg", "cell": "none", "summary": "attention"},
    "transformer": {"scan": "columns", "cell": "transformer", "summary": "max", "num_layers": 2},
    "frame net": {"scan": "locations", "frame_net": "cell", "cell": "gru", "crop_frames": 3},
    "points": {"scan": "locations", "frame_net": "points", "cell": "transformer", "num_layers": 2},
    "streams": {"streams": ["other"]},
    "averaged streams": {
        "streams": [{"tap": "other", "scan": "columns", "projection": 3}],
        "fusion": "late",
        "summary": "max",
    },
    "points alone": {"scan": "locations", "frame_net": "points", "cell": "none"},
    "tail": {"tail": "layer4", "num_layers": 2},
    "frame labels": {"task": "frame_labels", "bucketing": True, "augment": {"time_warp": 0.5}},
    "frame labels of locations": {
        "task": "frame_labels",
        "scan": "locations",
        "frame_net": "cell",
        "segments": {"smoothing": 0.2},
    },
    "several labels": {"task": "multilabel", "class_weights": "effective_number"},
    "several labels a frame": {"task": "frame_multilabel", "balanced_sampling": True, "window": 3},
    "regression": {
        "task": "regression",
        "class_weights": None,
        "schedule": "constant",
        "augment": {"mixup": 0.4, "noise": 0.2, "frame_dropout": 0.3},
    },
    "captioning": {"task": "captioning", **SMALL_WORDS},
    "captioning from the start": {
        "task": "captioning",
        **SMALL_WORDS,
        "decoder": {**SMALL_WORDS["decoder"], "inject": "start", "cell": "gru", **SAMPLING},
    },
    "captioning by a transformer": {
        "task": "captioning",
        **SMALL_WORDS,
        "decoder": {**SMALL_WORDS["decoder"], "cell": "transformer"},
        "scan": "rows",
    },
    "frame words": {"task": "frame_words", **SMALL_WORDS},
    "ctc": {"task": "ctc", **SMALL_WORDS},
    "questions": {"task": "question_answering", **SMALL_WORDS},
    "questions about rows": {"task": "question_answering", **SMALL_WORDS, "scan": "rows", "bucketing": True},
}


def clips_of(numbers: range) -> list[Clip]:
    """Clips with the targets of every task; of the labels, one is rarer."""
    return [
        make_clip(
            f"c{number}",
            label="ab"[number % 3 == 0],
            values=(float(number % 3),),
            frame_labels=(FrameLabel(0.0, 0.08, "a"), FrameLabel(0.08, 9.0, "ba"[number % 2])),
            captions=(CAPTIONS[number % 4],),
            questions=(
                Question(f"is it {'ab'[number % 2]}{' now' * (number == 0)}?", ("yes", "no")[number % 2]),
                Question("how many?", ("one", "two", "one")[number % 3]),
            ),
        )
        for number in numbers
    ]


def make_member(
    config: TrainConfig,
    model: ModelName,
    path: Path,
    *,
    features: Features | None = None,
    device: torch.device = CPU,
) -> Member:
    """A training on six clips that chooses by two, its state at `path`; features are in memory by default."""
    train_clips, val_clips = clips_of(range(6)), clips_of(range(6, 8))
    features = features or make_features(MAPS)
    task = TASK_CLASSES[config.task].from_clips(train_clips, config)
    torch.manual_seed(0)
    tail = nn.Conv2d(3, 2, 1) if config.tail else None
    read = TailFeatures(features, tail, device=device) if tail else features
    others = [make_features(OTHER) for _ in config.streams]
    streams = [read, *others]
    poolings = [config.pooling, *(stream.pooling for stream in config.streams)]
    standardisations = [
        channel_statistics(stream, train_clips, pooling=pooling)
        for stream, pooling in zip(streams, poolings, strict=True)
    ]
    flipped: Features = make_features(FLIPPED)
    if config.streams:
        features, flipped = (FusedFeatures([each, *others]) for each in (features, flipped))
    views = [features if view == CENTER else flipped for view in config.views]
    net = task.build_model(
        model,
        config,
        map_shapes=[SHAPE, *(stream.map_shape for stream in others)],
        tail=tail,
        standardisations=standardisations if config.standardise else None,
        seed=config.seed,
    )
    return Member(
        net,
        task=task,
        train=make_loader(
            features,
            train_clips,
            config,
            device=device,
            shuffle_seed=config.seed,
            labels=task.labels,
            views=views,
        ),
        val=make_loader(features, val_clips, config, device=device),
        config=config,
        device=device,
        state_path=path,
    )


def trained(
    config: TrainConfig,
    model: ModelName,
    path: Path,
    *,
    features: Features | None = None,
    device: torch.device = CPU,
) -> tuple[nn.Module, Fit, Task]:
    """The model of `make_member` with the weights of its best epoch, on `device`."""
    member = make_member(config, model, path, features=features, device=device)
    return member.model, train_alone(member), member.task


def train_alone(
    member: Member,
    *,
    on_batch: Callable[[], None] = lambda: None,
    on_epoch: Callable[[Metrics], None] = lambda _: None,
) -> Fit:
    """Train a member by itself; its model has the weights of its best epoch. Raises its failure."""
    fit_many([member], on_batch=lambda _: on_batch(), on_epoch=lambda _, metrics: on_epoch(metrics))
    if member.failure:
        raise member.failure
    return member.result()


def assert_equal_states(first: Member, second: Member) -> None:
    """Compare weights, those of the best epoch, the optimizer's state and the history, bit for bit."""
    _assert_equal(*(torch.load(each.state_path, weights_only=True) for each in (first, second)), at="state")


def _assert_equal(first: Any, second: Any, *, at: str) -> None:
    if torch.is_tensor(first):
        assert torch.equal(first, second), at
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), at
        for key, value in first.items():
            _assert_equal(value, second[key], at=f"{at}/{key}")
    elif isinstance(first, list):
        assert len(first) == len(second), at
        for number, value in enumerate(first):
            _assert_equal(value, second[number], at=f"{at}/{number}")
    else:
        assert repr(first) == repr(second), at
