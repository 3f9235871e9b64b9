import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import ConfigError, NonFiniteError
from pipeline.learn.answering import answer_batches
from pipeline.learn.member import Fit, Member, best_epoch
from pipeline.learn.models import build_model
from pipeline.learn.optimisation import SCHEDULES, learning_rate_share, make_optimizer
from pipeline.learn.streaming import Loader, make_loader
from pipeline.learn.tasks import Classification, FrameLabels, Regression
from pipeline.manifest import Clip, FrameLabel
from pipeline.settings.tasks import TASKS
from pipeline.settings.training import TrainConfig
from tests.support.every_training import train_alone
from tests.support.toy import make_features, order_task

CPU = torch.device("cpu")
TASK = Classification(("first", "second"))
SMALL = {
    "bidirectional": False,
    "hidden_size": 8,
    "projection": None,
    "epochs": 6,
    "patience": None,
    "batch_size": 8,
    "learning_rate": 0.02,
    "dropout": 0.3,
}


def loaders(config: TrainConfig, *, num_clips: int = 48) -> dict[str, Loader]:
    train_clips, train_maps = order_task(num_clips)
    val_clips, val_maps = order_task(24, split="val", seed=1)
    features = make_features(train_maps | val_maps)
    return {
        "train": Loader(features, train_clips, config.batch_size, 2, shuffle_seed=config.seed),
        "val": Loader(features, val_clips, config.batch_size, 2),
    }


def new_model(config: TrainConfig, name: str = "recurrent") -> torch.nn.Module:
    return build_model(name, config, map_shapes=[(2, 1, 1)], num_outputs=2, seed=config.seed)


def run(model: torch.nn.Module, config: TrainConfig, state_path: Path, **callbacks: object) -> Fit:
    return train_alone(
        Member(model, task=TASK, config=config, device=CPU, state_path=state_path, **loaders(config)),
        **callbacks,  # type: ignore[arg-type]
    )


@pytest.mark.slow
def test_a_recurrent_net_learns_an_order_that_the_baseline_cannot_see(tmp_path):
    config = TrainConfig(**{**SMALL, "epochs": 30, "dropout": 0.0})
    accuracy = {}
    for name in ("recurrent", "baseline"):
        result = run(new_model(config, name), config, tmp_path / f"{name}.pt")
        accuracy[name] = {split: m["accuracy"] for split, m in result.history[result.best_epoch].items()}
    assert accuracy["recurrent"] == {"train": 1.0, "val": 1.0}
    assert accuracy["baseline"]["train"] < 0.75


class Killed(BaseException):
    pass


@pytest.mark.parametrize("batches_until_kill", [1, 6, 7, 35])
def test_a_run_that_was_interrupted_continues_to_the_same_numbers(tmp_path, batches_until_kill):
    config = TrainConfig(**SMALL)  # 6 batches an epoch
    undisturbed_model = new_model(config)
    undisturbed = run(undisturbed_model, config, tmp_path / "undisturbed.pt")

    remaining = batches_until_kill

    def count_down() -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            raise Killed

    with pytest.raises(Killed):
        run(new_model(config), config, tmp_path / "state.pt", on_batch=count_down)
    torch.rand(17)  # the random state of the new process is another one
    model = new_model(config)
    told = []
    resumed = run(model, config, tmp_path / "state.pt", on_epoch=told.append)

    assert resumed == undisturbed
    assert told == undisturbed.history
    for name, value in undisturbed_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_a_finished_run_is_not_trained_again(tmp_path):
    config = TrainConfig(**SMALL)
    first = run(new_model(config), config, tmp_path / "state.pt")
    batches: list[None] = []
    again = run(new_model(config), config, tmp_path / "state.pt", on_batch=lambda: batches.append(None))
    assert again == first
    assert batches == []


def test_a_resume_on_another_kind_of_device_says_so(tmp_path, caplog):
    config, path = TrainConfig(**{**SMALL, "epochs": 1}), tmp_path / "state.pt"
    run(new_model(config), config, path)
    state = torch.load(path, weights_only=True)
    torch.save({**state, "device": "cuda"}, path)
    with caplog.at_level("INFO"):
        run(new_model(config), config, path)
    assert "Those epochs were trained on cuda, and the others will be on cpu" in caplog.text


def test_the_model_gets_the_weights_of_the_best_epoch(tmp_path):
    config = TrainConfig(**{**SMALL, "learning_rate": 0.2, "schedule": "constant"})
    model = new_model(config)
    result = run(model, config, tmp_path / "state.pt")
    scores = [(m["val"]["accuracy"], -m["val"]["loss"]) for m in result.history]
    assert scores[result.best_epoch] == max(scores)
    assert result.best_epoch != len(scores) - 1
    predictions = answer_batches(model, loaders(config)["val"].epoch(), task=TASK, device=CPU)
    measured = TASK.measure(predictions)(np.ones(24))
    assert measured == result.history[result.best_epoch]["val"]


def test_training_stops_when_patience_ends(tmp_path):
    config = TrainConfig(
        **{**SMALL, "epochs": 40, "patience": 3, "learning_rate": 0.3, "schedule": "constant"}
    )
    result = run(new_model(config), config, tmp_path / "state.pt")
    assert len(result.history) == result.best_epoch + 1 + 3 < 40


@pytest.mark.parametrize(("monitor", "sign"), [("loss", -1), ("macro_f1", 1)])
def test_the_best_epoch_is_chosen_by_the_monitor(tmp_path, monitor, sign):
    config = TrainConfig(
        **{**SMALL, "learning_rate": 0.2, "schedule": "constant", "monitor": monitor, "epochs": 8}
    )
    result = run(new_model(config), config, tmp_path / "state.pt")
    values = [sign * metrics["val"][monitor] for metrics in result.history]
    assert values[result.best_epoch] == max(values)
    assert min(values) < max(values)


def test_an_epoch_whose_monitor_is_undefined_is_never_the_best(monkeypatch):
    history = [{"val": {"accuracy": value, "loss": 1.0}} for value in (float("nan"), 0.2, 0.1)]
    assert best_epoch(history, task=TASK, monitor="accuracy") == 1
    facts = replace(TASK.facts, monitors={"accuracy": -1})
    monkeypatch.setitem(TASKS, "classification", facts)
    assert best_epoch(history, task=TASK, monitor="accuracy") == 2


@pytest.mark.parametrize(("clip_id", "value"), [("train17", torch.inf), ("val3", torch.nan)])
def test_features_that_are_not_finite_are_named_by_clip_and_train_nothing(tmp_path, clip_id, value):
    config = TrainConfig(**SMALL)
    batches = loaders(config)
    features = batches["train"].features
    first, count = features.spans[clip_id]
    features.rows[first + count - 1, 0] = value
    with pytest.raises(NonFiniteError, match=rf"^features/layer4: the features of {clip_id} have values"):
        train_alone(
            Member(
                new_model(config),
                task=TASK,
                config=config,
                device=CPU,
                state_path=tmp_path / "s.pt",
                **batches,
            )
        )
    assert not (tmp_path / "s.pt").exists()


def test_a_loss_that_is_not_finite_though_the_features_are_names_its_batch_and_the_learning_rate(tmp_path):
    config = TrainConfig(**SMALL)
    batches = loaders(config)
    model = new_model(config)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.inf)
    names = ", ".join(sample.clip.clip_id for sample in batches["train"].epoch_samples(0)[0])
    message = rf"loss is nan in epoch 0, in the batch of {names}\. .* lower learning_rate \(0.02\)"
    with pytest.raises(NonFiniteError, match=message):
        train_alone(
            Member(model, task=TASK, config=config, device=CPU, state_path=tmp_path / "s.pt", **batches)
        )


def test_a_state_of_another_model_or_a_damaged_one_is_a_fresh_start(tmp_path, caplog):
    config = TrainConfig(**{**SMALL, "epochs": 2})
    fresh = run(new_model(config), config, tmp_path / "fresh.pt")
    path = tmp_path / "state.pt"
    wider = TrainConfig(**{**SMALL, "epochs": 2, "hidden_size": 9})
    for length, message in (
        (None, "is of a model of another shape"),
        (-100, "is damaged"),
        (0, "is damaged"),
    ):
        run(new_model(wider), wider, path)
        path.write_bytes(path.read_bytes()[:length])
        model = new_model(config)
        assert run(model, config, path) == fresh
        assert f"{path} {message}" in caplog.text
        caplog.clear()
        path.unlink()


def test_of_values_with_several_scales_each_has_a_say_in_the_best_epoch():
    task = Regression(mean=(0.0, 0.0), std=(1e6, 1.0))
    wide, narrow = (5.0e5, 4.9e5), (0.2, 3.0)  # mean errors of both values after two epochs
    history = []
    for errors in zip(wide, narrow, strict=True):
        outputs = torch.tensor([errors, errors]) / torch.tensor([1e6, 1.0])
        history.append({"val": task.metrics(outputs, torch.zeros(2, 2))})
    for epoch, errors in enumerate(zip(wide, narrow, strict=True)):
        metrics = history[epoch]["val"]
        assert [metrics["mae_1"], metrics["mae_2"]] == pytest.approx(errors)  # in units
        assert metrics["mae"] == pytest.approx(sum(errors) / 2)
        standardised = (errors[0] / 1e6 + errors[1]) / 2
        for monitor in ("mae", "rmse"):
            assert task.monitored(metrics, monitor) == pytest.approx(standardised)
    for monitor in task.facts.monitors:
        if monitor != "r2":  # the targets do not differ
            assert best_epoch(history, task=task, monitor=monitor) == 0
    assert Regression((0.0,), (7.0,)).monitored({"mae": 3.0, "loss": 1.0}, "mae") == 3.0


def test_a_cosine_falls_from_one_to_zero():
    assert [SCHEDULES["cosine"](done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert SCHEDULES["constant"](0.7) == 1


def test_warmup_rises_in_equal_steps_and_the_schedule_follows_it():
    config = TrainConfig(epochs=4, warmup_epochs=1, schedule="cosine")
    shares = [learning_rate_share(step, config, epoch_steps=3) for step in range(12)]
    assert shares[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert shares[4:] == pytest.approx([SCHEDULES["cosine"](done / 9) for done in range(1, 9)])


def trained_weights(config: TrainConfig, path: Path) -> dict[str, torch.Tensor]:
    model = new_model(config, "baseline")
    run(model, config, path / "state.pt")
    return model.state_dict()


def test_sgd_and_adamw_take_the_steps_of_torch(tmp_path):
    options = {**SMALL, "epochs": 1, "batch_size": 48, "dropout": 0.0, "warmup_epochs": 0, "grad_clip": None}
    for name, optimizer in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)):
        extra = {"momentum": 0.5} if name == "sgd" else {}
        config = TrainConfig(**options, optimizer=name, weight_decay=0.1, **extra)
        model = new_model(config, "baseline")
        by_torch = optimizer(model.parameters(), lr=0.02, weight_decay=0.1, **extra)
        (batch,) = loaders(config)["train"].epoch(0)
        torch.nn.functional.cross_entropy(model(batch.maps, batch.lengths), TASK.targets(batch)).backward()
        by_torch.step()
        (tmp_path / name).mkdir()
        for key, value in trained_weights(config, tmp_path / name).items():
            torch.testing.assert_close(value, model.state_dict()[key])


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_an_optimizer_does_not_import_torchs_compiler(name):
    model = torch.nn.Linear(2, 1)
    with mock.patch.dict(sys.modules, {"torch._dynamo": None}):  # an import of it would fail
        optimizer = make_optimizer(model, TrainConfig(optimizer=name))
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.zero_grad()
        optimizer.step()


def test_the_tail_has_a_learning_rate_of_its_own():
    config = TrainConfig(tail="layer4", learning_rate=0.1, tail_learning_rate=0.001)
    tail = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1))
    model = build_model("recurrent", config, map_shapes=[(2, 2, 2)], num_outputs=2, tail=tail)
    others, tails = make_optimizer(model, config).param_groups
    assert {id(p) for p in tails["params"]} == {id(p) for p in model.steps.tail.parameters()}
    assert len(others["params"]) + len(tails["params"]) == len(list(model.parameters()))
    assert (others["full_lr"], tails["full_lr"]) == (0.1, 0.001)


def test_bfloat16_trains_to_nearly_the_same_losses(tmp_path):
    losses = []
    for precision in ("float32", "bfloat16"):
        config = TrainConfig(**{**SMALL, "dropout": 0.0, "epochs": 3, "precision": precision})
        result = run(new_model(config), config, tmp_path / f"{precision}.pt")
        losses.append([metrics["train"]["loss"] for metrics in result.history])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_float16_needs_a_gpu(tmp_path):
    config = TrainConfig(**SMALL, precision="float16")
    with pytest.raises(ConfigError, match=r"precision 'float16' needs a GPU"):
        run(new_model(config), config, tmp_path / "state.pt")


def frame_task(num_clips: int, *, split: str, seed: int) -> tuple[list[Clip], dict[str, np.ndarray]]:
    """A frame's label is the channel whose spike was seen last; the values say when they were seen."""
    clips, maps = order_task(num_clips, split=split, seed=seed)
    described = []
    for clip in clips:
        spikes = maps[clip.clip_id][:, :, 0, 0] > 1.5  # (T, 2)
        first, second = (np.flatnonzero(spikes.any(axis=1)) / 25).tolist()
        labels = [("x", "y")[spikes[round(seconds * 25)].argmax()] for seconds in (first, second)]
        frame_labels = (FrameLabel(first, second, labels[0]), FrameLabel(second, 9.0, labels[1]))
        described.append(replace(clip, frame_labels=frame_labels, values=(second, second - first)))
    return described, maps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "metric", "enough"), [(FrameLabels, "accuracy", 0.97), (Regression, "r2", 0.8)]
)
def test_a_net_learns_labels_of_frames_and_values_of_clips(tmp_path, kind, metric, enough):
    config = TrainConfig(**{**SMALL, "task": kind.name, "epochs": 25, "dropout": 0.0})
    train_clips, train_maps = frame_task(80, split="train", seed=0)
    val_clips, val_maps = frame_task(30, split="val", seed=1)
    features = make_features(train_maps | val_maps)
    task = kind.from_clips(train_clips, config)
    model = task.build_model("recurrent", config, map_shapes=[(2, 1, 1)])
    result = train_alone(
        Member(
            model,
            task=task,
            train=make_loader(features, train_clips, config, device=CPU, shuffle_seed=0),
            val=make_loader(features, val_clips, config, device=CPU),
            config=config,
            device=CPU,
            state_path=tmp_path / "state.pt",
        )
    )
    assert result.history[result.best_epoch]["val"][metric] > enough


def test_the_best_epoch_of_several_values_is_that_of_their_standardised_errors(tmp_path):
    config = TrainConfig(
        **{**SMALL, "task": "regression", "epochs": 12, "learning_rate": 0.1, "schedule": "constant"}
    )
    clips, maps = {}, {}
    for split, seed in (("train", 0), ("val", 1)):
        described, more = frame_task(30, split=split, seed=seed)
        clips[split] = [replace(clip, values=(1e6 * clip.values[0], clip.values[1])) for clip in described]
        maps |= more
    task = Regression.from_clips(clips["train"], config)
    result = train_alone(
        Member(
            task.build_model("recurrent", config, map_shapes=[(2, 1, 1)]),
            task=task,
            train=make_loader(make_features(maps), clips["train"], config, device=CPU, shuffle_seed=0),
            val=make_loader(make_features(maps), clips["val"], config, device=CPU),
            config=config,
            device=CPU,
            state_path=tmp_path / "state.pt",
        )
    )
    errors = np.array([[m["val"]["mae_1"], m["val"]["mae_2"]] for m in result.history])  # in units
    deviations = np.std([clip.values for clip in clips["train"]], axis=0)
    best = int((errors / deviations).mean(axis=1).argmin())
    assert result.best_epoch == best != int(errors.mean(axis=1).argmin())


@pytest.mark.parametrize(
    "wrong",
    [
        {"cell": "perceptron"},
        {"hidden_size": 0},
        {"dropout": 1.0},
        {"learning_rate": -1},
        {"intra_op_threads": 0},
        {"hiden_size": 3},
        {"warmup_epochs": 30},
        {"momentum": 1},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainConfig(**wrong)
