"""Successive halving: which members go on, and that those that do are trained as if alone."""

from collections.abc import Sequence

import pytest

from pipeline.learn.sweeps.halving import halve
from pipeline.learn.training import Fit

# The val loss of each epoch: `late` is bad at first, and never so bad as `worst`.
LOSSES = {
    "best": [5.0, 3.0, 2.0, 1.0],
    "good": [4.0, 4.0, 3.0, 2.0],
    "late": [9.0, 8.0, 1.0, 0.5],
    "worst": [9.0, 9.0, 9.0, 9.0],
}


class Trainer:
    """Trains nothing; notes what it is asked for."""

    def __init__(self, *, missing: Sequence[str] = ()) -> None:
        self.asked: list[tuple[list[str], int | None]] = []
        self._missing = missing

    def __call__(self, members: Sequence[str], epochs: int | None) -> dict[str, Fit]:
        self.asked.append((list(members), epochs))
        return {
            name: Fit([{"val": {"loss": loss}} for loss in LOSSES[name[:5].rstrip("0")][:epochs]], 0)
            for name in members
            if name not in self._missing
        }


def test_after_each_rung_the_share_with_the_lowest_loss_goes_on() -> None:
    train = Trainer()
    settings = [["worst"], ["late"], ["best"], ["good"]]
    assert halve(settings, rungs=[1, 3], keep=0.5, train_until=train) == ("best",)
    assert train.asked == [(["worst", "late", "best", "good"], 1), (["best", "good"], 3), (["best"], None)]


def test_the_lowest_loss_so_far_counts() -> None:
    LOSSES["rises"] = [1.0, 7.0, 7.0, 7.0]
    assert halve([["good"], ["rises"]], rungs=[3], keep=0.5, train_until=Trainer()) == ("rises",)


@pytest.mark.parametrize(("keep", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3)])
def test_the_share_is_rounded_up(keep: float, kept: int) -> None:
    settings = [[name] for name in ("best", "good", "late", "worst")]
    assert len(halve(settings, rungs=[2], keep=keep, train_until=Trainer())) == kept


def test_members_that_differ_in_the_seed_alone_go_on_together() -> None:
    train = Trainer()
    # The best seed of the first setting beats both of the second; its mean does not.
    settings = [["best", "worst"], ["good", "good0"]]
    assert halve(settings, rungs=[2], keep=0.5, train_until=train) == ("good", "good0")


def test_settings_with_a_member_that_was_not_started_come_last() -> None:
    settings = [["best"], ["good"], ["worst"]]
    assert halve(settings, rungs=[2], keep=0.5, train_until=Trainer(missing=["best"])) == ("good", "worst")


def test_without_rungs_all_train_to_their_end() -> None:
    train = Trainer()
    assert halve([["best"], ["worst"]], rungs=[], keep=0.5, train_until=train) == ("best", "worst")
    assert train.asked == [(["best", "worst"], None)]
