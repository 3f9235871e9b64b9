"""Scores over folds, against loops written by hand."""

import numpy as np
import pytest

from pipeline.learn.answers import tally
from pipeline.learn.folds import FoldScore, FoldUnits, score_folds
from tests.support.runs import answer_table

TRUTH = "xxyyxyxy"


def tallies(*answers: str, first: int = 0):
    """Of one fold, the tallies of seeds that answered so about clips c<first>, ..."""
    ids = [f"c{first + number}" for number in range(len(answers[0]))]
    truth = list(TRUTH[: len(ids)])
    return [
        tally(answer_table(ids, task="classification", truth=truth, answer=list(each))) for each in answers
    ]


def units_of(folds, groups=()) -> FoldUnits:
    return FoldUnits.of([fold[0].clip_ids for fold in folds], groups=dict(groups))


def test_values_are_means_over_seeds_and_their_mean_and_deviation_are_over_folds() -> None:
    folds = [tallies("xxyy", "xxyx"), tallies("xyxx", "yyyy", first=4), tallies("xxyx", "xxyx", first=8)]
    score = score_folds(folds, units=units_of(folds), num_resamples=50, seed=0)
    values = [(1 + 0.75) / 2, (0.25 + 0.5) / 2, 0.75]
    assert score.values.tolist() == values
    assert score.mean.value == pytest.approx(np.mean(values))
    assert score.deviation == pytest.approx(np.std(values, ddof=1))


def test_a_draw_takes_folds_and_in_each_of_them_groups() -> None:
    # In the first fold, one group is right and the other wrong; in the second, all are right.
    folds = [tallies("xxxx"), tallies("xxyy", first=4)]
    groups = {"c0": "g", "c1": "g", "c2": "h", "c3": "h"}
    score = score_folds(folds, units=units_of(folds, groups), num_resamples=4000, seed=0)
    # A drawn first fold has 0, 0.5 or 1, by the two groups that are drawn, a second one has 1.
    of_fold = {0: [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)], 1: [(1.0, 1.0)]}
    expected: dict[float, float] = {}
    for one in (0, 1):
        for other in (0, 1):
            for first, p in of_fold[one]:
                for second, q in of_fold[other]:
                    value = (first + second) / 2
                    expected[value] = expected.get(value, 0) + p * q / 4
    found, counts = np.unique(score.draws, return_counts=True)
    assert found.tolist() == sorted(expected)
    for value, count in zip(found.tolist(), counts, strict=True):
        assert count / 4000 == pytest.approx(expected[value], abs=0.03)


def test_two_models_are_compared_on_the_same_draws() -> None:
    better = [tallies("xxyy"), tallies("xxyx", first=4), tallies("xxyyxyxx", first=8)]
    score = score_folds(better, units=units_of(better), num_resamples=30, seed=3)
    same = score - score_folds(better, units=units_of(better), num_resamples=30, seed=3)
    assert isinstance(same, FoldScore)
    assert not same.draws.any()
    assert (same.mean.value, same.mean.low, same.mean.high) == (0, 0, 0)
