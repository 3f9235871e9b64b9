"""Rankings: by hand-written loops, and by simulated sweeps of which the answer is known."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipeline.learn.evaluation import score_predictions
from pipeline.learn.metrics import Units
from pipeline.learn.sweeps.ranking import Candidate, Ranking, rank, val_metric
from pipeline.learn.tasks import Classification, Predictions
from tests.support.runs import student
from tests.support.toy import make_clip

NUM_RESAMPLES = 200


def mean_of(numbers: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda counts: float(counts @ numbers / counts.sum())


def ranked(
    table: np.ndarray,
    *,
    seeds: int = 1,
    sign: int = 1,
    num_resamples: int = NUM_RESAMPLES,
    units: Units | None = None,
) -> Ranking:
    """Of members with the number of each clip (M, N); their metric is its mean. Each setting has `seeds`."""
    candidates = [
        Candidate(f"m{number}", setting=f"s{number // seeds}", metric=mean_of(row), loss=0.0)
        for number, row in enumerate(table)
    ]
    return rank(
        candidates,
        units=units or Units.of([None] * table.shape[1]),
        sign=sign,
        num_resamples=num_resamples,
        seed=3,
    )


def hits(rng: np.random.Generator, skills: np.ndarray, *, num_clips: int) -> np.ndarray:
    """(M, N) whether each member is right about each clip; some clips are harder than others, for all."""
    hardness = rng.normal(0, 0.1, num_clips)
    chances = np.clip(skills[:, None] - hardness, 0, 1)
    return (rng.random(chances.shape) < chances).astype(float)


def test_settings_are_sorted_by_the_mean_of_their_seeds_and_members_by_their_value() -> None:
    values = np.array([0.9, 0.1, 0.4, 0.8, 0.3, 0.5])
    table = values[:, None] * np.ones(30)
    up, down = ranked(table, seeds=2), ranked(table, seeds=2, sign=-1)
    assert [setting.members for setting in up.settings] == [("m3", "m2"), ("m0", "m1"), ("m5", "m4")]
    assert [setting.value for setting in up.settings] == pytest.approx([0.6, 0.5, 0.4])
    assert up.settings[0].values == pytest.approx((0.8, 0.4))
    assert up.winner == "m3"
    assert [setting.members for setting in down.settings] == [("m4", "m5"), ("m1", "m0"), ("m2", "m3")]


def test_the_loss_decides_between_equal_metrics_and_an_undefined_one_is_last() -> None:
    def candidate(name: str, value: float, loss: float) -> Candidate:
        return Candidate(name, name, metric=lambda _: value, loss=loss)

    candidates = [candidate("a", 0.5, 2.0), candidate("b", 0.5, 1.0), candidate("c", math.nan, 0.1)]
    ranking = rank(candidates, units=Units.of([None] * 30), sign=1, num_resamples=5, seed=0)
    assert [setting.members for setting in ranking.settings] == [("b",), ("a",), ("c",)]
    assert ranking.num_indistinguishable == 2


def test_differences_and_intervals_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    table = hits(rng, np.array([0.8, 0.7, 0.75, 0.3]), num_clips=40)
    ranking = ranked(table)
    order = sorted(range(4), key=lambda number: -table[number].mean())
    rng = np.random.default_rng(3)
    draws = [rng.integers(40, size=40) for _ in range(NUM_RESAMPLES)]
    errors, deviations = {}, {}
    for first, second in itertools.combinations(order, 2):
        difference = table[second] - table[first]
        deviating = [difference[draw].mean() - difference.mean() for draw in draws]
        errors[first, second] = np.std(deviating)
        deviations[first, second] = np.abs(deviating) / errors[first, second]
    largest = [max(each[r] for each in deviations.values()) for r in range(NUM_RESAMPLES)]
    reach = student(np.quantile(largest, 0.95), 40)
    assert ranking.settings[0].difference is None
    for setting, number in zip(ranking.settings[1:], order[1:], strict=True):
        difference, error = table[number].mean() - table[order[0]].mean(), errors[order[0], number]
        assert setting.members == (f"m{number}",)
        assert setting.difference is not None
        assert setting.difference.value == pytest.approx(difference)
        assert setting.difference.low == pytest.approx(difference - reach * error, rel=1e-4)
        assert setting.difference.high == pytest.approx(difference + reach * error, rel=1e-4)
        assert setting.is_distinguishable == (difference + reach * error < 0)
    assert ranking.num_indistinguishable == 1


def test_optimism_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(1)
    table = rng.normal([[0.0], [0.0], [0.1], [-0.1]], 1.0, (4, 40))
    ranking = ranked(table, seeds=2)
    winner = int(ranking.winner[1])
    rng = np.random.default_rng(3)
    gains = []
    for _ in range(NUM_RESAMPLES):
        draw = rng.integers(40, size=40)
        outside = [clip for clip in range(40) if clip not in draw]
        inside = table[:, draw].mean(axis=1)
        pair = max(((0, 1), (2, 3)), key=lambda pair: inside[list(pair)].mean())
        chosen = max(pair, key=lambda number: inside[number])
        gains.append(
            (inside[chosen] - table[chosen, outside].mean())
            - (inside[winner] - table[winner, outside].mean())
        )
    assert ranking.optimism == pytest.approx(np.mean(gains) * np.sqrt(0.5))
    assert ranking.optimism > 0


def test_a_metric_of_which_less_is_better_gives_the_mirrored_ranking() -> None:
    table = hits(np.random.default_rng(2), np.full(5, 0.6), num_clips=50)
    up, down = ranked(table), ranked(-table, sign=-1)
    assert [s.members for s in down.settings] == [s.members for s in up.settings]
    assert down.optimism == pytest.approx(up.optimism)
    assert down.num_indistinguishable == up.num_indistinguishable
    for mine, theirs in zip(down.settings[1:], up.settings[1:], strict=True):
        assert mine.difference is not None
        assert theirs.difference is not None
        assert (mine.difference.low, mine.difference.high) == pytest.approx(
            (-theirs.difference.high, -theirs.difference.low)
        )


def test_equal_answers_have_an_unknown_interval_and_are_indistinguishable() -> None:
    table = hits(np.random.default_rng(4), np.array([0.7, 0.4]), num_clips=60)[[0, 0, 1]]
    ranking = ranked(table)
    equal = ranking.settings[1]
    assert equal.difference is not None
    assert equal.difference.value == 0
    assert equal.difference.interval is None
    assert ranking.num_indistinguishable == 1


def test_one_member_alone_is_the_winner_without_optimism() -> None:
    ranking = ranked(hits(np.random.default_rng(5), np.array([0.7]), num_clips=30))
    assert ranking.winner == "m0"
    assert ranking.num_indistinguishable == 0
    assert ranking.optimism == 0


@pytest.mark.slow
@pytest.mark.parametrize(("num_members", "seeds"), [(6, 1), (12, 3)])
def test_of_sweeps_of_equal_members_about_one_in_twenty_shows_a_difference(
    num_members: int, seeds: int
) -> None:
    rng = np.random.default_rng(6)
    shown, optimism, truth = [], [], []
    for _ in range(200):
        table = hits(rng, np.full(num_members, 0.7), num_clips=100)
        ranking = ranked(table, seeds=seeds, num_resamples=150)
        shown.append(ranking.num_indistinguishable < len(ranking.settings) - 1)
        optimism.append(ranking.optimism)
        truth.append(table[int(ranking.winner[1:])].mean() - 0.7)
    assert 0.01 < np.mean(shown) < 0.1  # its standard error is 0.015
    assert np.mean(optimism) == pytest.approx(np.mean(truth), rel=0.15)


def test_a_member_that_is_clearly_best_is_told_from_the_others_and_is_not_optimistic() -> None:
    table = hits(np.random.default_rng(7), np.array([0.95, 0.5, 0.45, 0.5]), num_clips=200)
    ranking = ranked(table)
    assert ranking.num_indistinguishable == 0
    assert ranking.optimism < 0.001


@pytest.mark.parametrize("monitor", ["accuracy", "macro_f1", "mAP", "loss"])
def test_the_metric_of_predictions_is_that_of_their_score_in_whatever_order_clips_come(monitor: str) -> None:
    rng = np.random.default_rng(8)
    task = Classification(("left", "right"))
    clips = [make_clip(f"c{number:02}", label="left") for number in range(30)]
    outputs, targets = torch.from_numpy(rng.normal(size=(30, 2))), torch.from_numpy(rng.integers(2, size=30))

    def predictions(order: list[int]) -> Predictions:
        return Predictions(
            clips=tuple(clips[number] for number in order),
            outputs=tuple(outputs[number] for number in order),
            targets=tuple(targets[number] for number in order),
            frame_seconds=(torch.zeros(1),) * 30,
        )

    in_order = val_metric(predictions(list(range(30))), task=task, monitor=monitor)
    shuffled = val_metric(predictions(rng.permutation(30).tolist()), task=task, monitor=monitor)
    score = score_predictions(predictions(list(range(30))), task=task, num_resamples=20, seed=3)
    assert in_order(np.ones(30)) == score.metrics[monitor].value
    rng = np.random.default_rng(3)
    for drawn in score.resampled[monitor]:
        counts = np.bincount(rng.integers(30, size=30), minlength=30)
        assert in_order(counts) == drawn
        assert shuffled(counts) == pytest.approx(drawn)
