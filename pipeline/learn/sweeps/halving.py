"""Successive halving: all members start, and after each rung the better ones go on.

See Jamieson and Talwalkar 2016. Members are compared by their lowest loss on the val clips: it tells earlier
than the accuracy which of them end well. Their learning rates follow the schedule of a full training, so that
a member that goes on is trained as if alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from pipeline.learn.training import Fit

# Trains each of the members until it has had so many epochs, None: to its end. Members that it does not start
# any more are missing in what it returns.
TrainUntil = Callable[[Sequence[str], int | None], Mapping[str, Fit]]


def halve(
    settings: Sequence[Sequence[str]], *, rungs: Sequence[int], keep: float, train_until: TrainUntil
) -> tuple[str, ...]:
    """Train members up to each rung, and those that are still in the race to their end.

    Args:
        settings: the members' names. Those of one setting differ in the seed alone, and go on or stop
            together: else the lucky seeds of bad settings would be left.
        rungs: epochs after which settings stop, rising.
        keep: the share of settings that goes on after each rung, rounded up.
        train_until: trains; a member's training goes on where its last one ended.

    Returns:
        The members that were to train to their end.
    """
    going = list(settings)
    for epochs in rungs:
        fits = train_until([name for setting in going for name in setting], epochs)
        losses = [_mean_loss(setting, fits) for setting in going]
        best = sorted(range(len(going)), key=losses.__getitem__)[: math.ceil(keep * len(going))]
        going = [going[number] for number in sorted(best)]
    names = tuple(name for setting in going for name in setting)
    train_until(names, None)
    return names


def _mean_loss(setting: Sequence[str], fits: Mapping[str, Fit]) -> float:
    """The mean over seeds of the lowest val loss; infinite if one of them was not trained."""
    if not all(name in fits for name in setting):
        return math.inf
    return fmean(min(metrics["val"]["loss"] for metrics in fits[name].history) for name in setting)
