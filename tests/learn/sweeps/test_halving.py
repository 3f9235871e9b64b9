"""Successive halving: which members go on, and that those that do are trained as if alone."""

from collections.abc import Sequence

import pytest

from pipeline.learn.sweeps import halve

# The val loss of each epoch: `late` is bad at first.
LOSSES = {
    "best": [5.0, 3.0, 2.0, 1.0],
    "good": [4.0, 4.0, 3.0, 2.0],
    "same": [4.0, 4.0, 3.0, 2.0],
    "late": [9.0, 8.0, 1.0, 0.5],
    "rising": [1.0, 7.0, 7.0, 7.0],
    "worst": [9.5, 9.5, 9.5, 9.5],
}


class Trainer:
    """Trains nothing; notes what it is asked for. What it has trained before is not cut to the epochs."""

    def __init__(self, *, missing: Sequence[str] = ()) -> None:
        self.asked: list[tuple[list[str], int | None]] = []
        self._missing = missing

    def __call__(self, members: Sequence[str], epochs: int | None) -> dict[str, list[float]]:
        self.asked.append((list(members), epochs))
        return {name: LOSSES[name] for name in members if name not in self._missing}


def finalists(settings: list[list[str]], *, rungs: list[int], keep: float, train: Trainer) -> list[str]:
    halve(settings, rungs=rungs, keep=keep, train_until=train)
    names, epochs = train.asked[-1]
    assert epochs is None
    return names


def test_after_each_rung_the_share_with_the_lowest_loss_goes_on() -> None:
    train = Trainer()
    settings = [["worst"], ["late"], ["best"], ["good"]]
    halve(settings, rungs=[1, 3], keep=0.5, train_until=train)
    assert train.asked == [(["worst", "late", "best", "good"], 1), (["best", "good"], 3), (["best"], None)]


def test_the_lowest_loss_so_far_counts() -> None:
    assert finalists([["good"], ["rising"]], rungs=[3], keep=0.5, train=Trainer()) == ["rising"]


@pytest.mark.parametrize(("keep", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3)])
def test_the_share_is_rounded_up(keep: float, kept: int) -> None:
    settings = [[name] for name in ("best", "good", "late", "worst")]
    assert len(finalists(settings, rungs=[2], keep=keep, train=Trainer())) == kept


def test_a_share_that_is_a_whole_number_is_not_rounded_up() -> None:
    assert 0.28 * 25 > 7
    settings = [["good"]] * 25
    assert len(finalists(settings, rungs=[2], keep=0.28, train=Trainer())) == 7


def test_members_that_differ_in_the_seed_alone_go_on_together() -> None:
    # The best seed of the first setting beats both of the second; its mean does not.
    settings = [["best", "worst"], ["good", "same"]]
    assert finalists(settings, rungs=[2], keep=0.5, train=Trainer()) == ["good", "same"]


def test_settings_with_a_member_that_was_not_started_do_not_go_on() -> None:
    settings = [["best", "worst"], ["good"], ["late"]]
    assert finalists(settings, rungs=[2], keep=0.9, train=Trainer(missing=["worst"])) == ["good", "late"]


def test_without_rungs_all_train_to_their_end() -> None:
    train = Trainer()
    halve([["best"], ["worst"]], rungs=[], keep=0.5, train_until=train)
    assert train.asked == [(["best", "worst"], None)]
