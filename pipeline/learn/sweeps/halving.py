"""Successive halving: all members start, and after each rung the better ones go on.

See Jamieson and Talwalkar 2016. Members are compared by their lowest loss on the val clips: it tells earlier
than the accuracy which of them end well. Their learning rates follow the schedule of a full training, so that
a member that goes on is trained as if alone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

# Trains each of these members until it has had so many epochs, None: to its end. Returns the val loss of each
# epoch, by member; those that it does not train any more, for want of time, are missing.
TrainUntil = Callable[[Sequence[str], int | None], Mapping[str, Sequence[float]]]


def halve(
    settings: Sequence[Sequence[str]], *, rungs: Sequence[int], keep: float, train_until: TrainUntil
) -> None:
    """Train all members up to the first rung, the better ones up to the next, and the last ones to their end.

    Args:
        settings: the members' names. Those of one setting differ in the seed alone, and go on or stop
            together: else the lucky seeds of bad settings would be left.
        rungs: epochs after which settings stop, rising.
        keep: the share of settings that goes on after each rung, rounded up.
        train_until: a member's training goes on where its last one ended.
    """
    going = list(settings)
    for epochs in rungs:
        val_losses = train_until([name for setting in going for name in setting], epochs)
        losses = [_mean_loss(setting, val_losses, epochs=epochs) for setting in going]
        best = sorted(range(len(going)), key=losses.__getitem__)[: num_kept(len(going), keep)]
        going = [going[number] for number in sorted(best) if losses[number] < math.inf]
    train_until([name for setting in going for name in setting], None)


def num_kept(number: int, keep: float) -> int:
    """How many of so many settings go on after a rung."""
    return math.ceil(round(keep * number, 6))  # 0.28 * 25 is 7.000000000000001


def _mean_loss(setting: Sequence[str], losses: Mapping[str, Sequence[float]], *, epochs: int) -> float:
    """The mean over seeds of the lowest val loss so far; infinite if one of them was not trained."""
    if not all(name in losses for name in setting):
        return math.inf
    return fmean(min(losses[name][:epochs]) for name in setting)
