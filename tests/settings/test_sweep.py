"""Sweeps: which members they have, and which values are drawn."""

import math
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.settings.sweep import Distribution, RandomConfig, SweepConfig, sweep_points


def sweep(**values: Any) -> SweepConfig:
    return SweepConfig.model_validate(values)


def draws(distribution: dict[str, Any], *, num_draws: int = 2000) -> list[Any]:
    config = RandomConfig.model_validate({"num_draws": num_draws, "keys": {"train.dropout": distribution}})
    return [draw["train.dropout"] for draw in config.draws()]


def test_a_grid_has_each_value_with_each_other() -> None:
    assert sweep_points(sweep(grid={"train.cell": ["lstm", "gru"], "train.seed": [0, 1]})) == [
        {"train.cell": "lstm", "train.seed": 0},
        {"train.cell": "lstm", "train.seed": 1},
        {"train.cell": "gru", "train.seed": 0},
        {"train.cell": "gru", "train.seed": 1},
    ]


def test_list_draws_and_grid_are_combined() -> None:
    points = sweep_points(
        sweep(
            list=[{"train.cell": "lstm"}, {"train.cell": "none", "corpus.manifest": "b.csv"}],
            random={"num_draws": 3, "keys": {"train.dropout": {"choice": [0.5]}}},
            grid={"train.seed": [0, 1]},
        )
    )
    assert len(points) == 2 * 3 * 2
    assert points[0] == {"train.cell": "lstm", "train.dropout": 0.5, "train.seed": 0}
    assert points[-1] == {
        "train.cell": "none",
        "corpus.manifest": "b.csv",
        "train.dropout": 0.5,
        "train.seed": 1,
    }


def test_more_draws_begin_with_the_same_and_other_keys_change_none() -> None:
    rate = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    dropout = {"train.dropout": {"uniform": [0, 0.7]}}
    few = RandomConfig.model_validate({"num_draws": 3, "keys": rate}).draws()
    more = RandomConfig.model_validate({"num_draws": 5, "keys": dropout | rate}).draws()
    other = RandomConfig.model_validate({"num_draws": 3, "seed": 1, "keys": rate}).draws()
    assert [draw["train.learning_rate"] for draw in more[:3]] == [d["train.learning_rate"] for d in few]
    assert other != few


def test_draws_have_the_distribution_that_is_asked_for() -> None:
    uniform = draws({"uniform": [-1, 3]})
    assert -1 <= min(uniform) < -0.9
    assert 2.9 < max(uniform) <= 3
    assert sum(uniform) / len(uniform) == pytest.approx(1, abs=0.1)
    log_uniform = draws({"log_uniform": [1e-4, 1e-2]})
    assert 1e-4 <= min(log_uniform) < 1.1e-4
    assert sum(value < 1e-3 for value in log_uniform) / 2000 == pytest.approx(0.5, abs=0.04)
    assert all(value == float(f"{value:.4g}") for value in log_uniform)
    assert set(draws({"integers": [2, 4]})) == {2, 3, 4}
    assert set(draws({"choice": ["lstm", None]})) == {"lstm", None}


def test_a_rounded_draw_stays_between_the_limits() -> None:
    limits = (0.123451, 0.123459)  # with four digits, either is outside
    assert set(draws({"uniform": limits}, num_draws=20)) == {limits[1]}
    assert set(draws({"log_uniform": limits}, num_draws=20)) == {limits[1]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "a sweep varies something"),
        ({"grid": {"extract.taps": [1]}}, "it varies corpus.manifest and keys of train"),
        ({"grid": {"train.seed": []}}, "at least 1 item"),
        ({"grid": {"train.seed": [0]}, "list": [{"train.seed": 1}]}, "train.seed: give each key in one of"),
        ({"random": {"num_draws": 1, "keys": {}}}, "at least 1 item"),
        ({"grid": {"train.seed": [0]}, "halving": {"rungs": [4, 2]}}, "rungs must rise"),
        ({"grid": {"train.seed": [0]}, "halving": {"rungs": [2], "keep": 1}}, "less than 1"),
        ({"grid": {"train.seed": [0]}, "minutes": 0}, "greater than 0"),
    ],
)
def test_a_wrong_sweep_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        sweep(**values)


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ({}, "give one of uniform, log_uniform, integers, choice"),
        ({"uniform": [0, 1], "choice": [1]}, "give one of"),
        ({"uniform": [1, 1]}, "uniform needs a smaller number and a larger one, not 1.0 and 1.0"),
        ({"uniform": [0, math.inf]}, "a smaller number and a larger one"),
        ({"log_uniform": [0, 1]}, "numbers above 0"),
    ],
)
def test_a_wrong_distribution_is_refused(distribution: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Distribution.model_validate(distribution)
