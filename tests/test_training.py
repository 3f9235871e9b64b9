from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pipeline.errors import PipelineError
from pipeline.evaluation import predict
from pipeline.models import build_model
from pipeline.streaming import Loader
from pipeline.tasks import Classification
from pipeline.training import SCHEDULES, Fit, TrainConfig, fit
from tests.toy import make_features, order_task

CPU = torch.device("cpu")
TASK = Classification(("first", "second"))
SMALL = {
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
    return build_model(name, config, map_shape=(2, 1, 1), num_outputs=2, seed=config.seed)


def run(model: torch.nn.Module, config: TrainConfig, state_path: Path, **callbacks: object) -> Fit:
    return fit(
        model,
        task=TASK,
        config=config,
        device=CPU,
        state_path=state_path,
        **loaders(config),
        **callbacks,  # type: ignore[arg-type]
    )


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


@pytest.mark.parametrize("batches_until_kill", [1, 5, 6, 7, 12, 17, 35])
def test_a_run_that_was_interrupted_continues_to_the_same_numbers(tmp_path, batches_until_kill):
    config = TrainConfig(**SMALL)  # 6 batches an epoch
    undisturbed_model = new_model(config)
    undisturbed = run(undisturbed_model, config, tmp_path / "undisturbed.pt")

    remaining = batches_until_kill

    def count_down(_: int) -> None:
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
    batches: list[int] = []
    again = run(new_model(config), config, tmp_path / "state.pt", on_batch=batches.append)
    assert again == first
    assert batches == []


def test_the_model_gets_the_weights_of_the_best_epoch(tmp_path):
    config = TrainConfig(**{**SMALL, "learning_rate": 0.2, "schedule": "constant"})
    model = new_model(config)
    result = run(model, config, tmp_path / "state.pt")
    scores = [(m["val"]["accuracy"], -m["val"]["loss"]) for m in result.history]
    assert scores[result.best_epoch] == max(scores)
    assert result.best_epoch != len(scores) - 1
    predictions = predict(model, loaders(config)["val"].epoch(), task=TASK, device=CPU)
    assert TASK.metrics(predictions.outputs, predictions.targets) == result.history[result.best_epoch]["val"]


def test_training_stops_when_patience_ends(tmp_path):
    config = TrainConfig(
        **{**SMALL, "epochs": 40, "patience": 3, "learning_rate": 0.3, "schedule": "constant"}
    )
    result = run(new_model(config), config, tmp_path / "state.pt")
    assert len(result.history) == result.best_epoch + 1 + 3 < 40


def test_batches_are_counted_in_clips(tmp_path):
    config = TrainConfig(**{**SMALL, "epochs": 2, "batch_size": 20})
    counts: list[int] = []
    run(new_model(config), config, tmp_path / "state.pt", on_batch=counts.append)
    assert counts == [20, 20, 8] * 2


def test_a_loss_that_is_not_finite_stops_with_the_remedy(tmp_path):
    config = TrainConfig(**SMALL)
    model = new_model(config)
    with torch.no_grad():
        model.head.bias.fill_(torch.nan)
    with pytest.raises(PipelineError, match=r"loss is nan in epoch 0: .* train.learning_rate \(0.02\)"):
        run(model, config, tmp_path / "state.pt")


def test_a_cosine_falls_from_one_to_zero():
    assert [SCHEDULES["cosine"](done) for done in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert SCHEDULES["constant"](0.7) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"cell": "transformer"},
        {"hidden_size": 0},
        {"dropout": 1.0},
        {"learning_rate": -1},
        {"device": "gpu"},
        {"hiden_size": 3},
    ],
)
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        TrainConfig(**wrong)
