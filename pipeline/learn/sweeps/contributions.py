"""Contributions: how the val metric of a sweep's members goes with the value of each key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.settings.sweep import value_text

_MAX_VALUES = 6  # of a key, before numbers are put together
_NUM_RANGES = 3


@dataclass(frozen=True)
class ValueMean:
    """The members that have a value, or one of a range of values, for a key."""

    value: str  # for people: `lstm`, `64`, `0.0001 to 0.0004`; `-` where the key does nothing
    num_members: int
    mean: float  # of their val metric
    lowest: float
    highest: float


@dataclass(frozen=True)
class Contribution:
    """What a key of the sweep contributed, all else averaged over."""

    key: str
    values: tuple[ValueMean, ...]  # in their order

    @property
    def range(self) -> float:
        """From the lowest of the means to the highest: how much the key may change the metric."""
        means = [value.mean for value in self.values]
        return max(means) - min(means)


def contributions(members: Sequence[Mapping[str, Any]], metrics: Sequence[float]) -> tuple[Contribution, ...]:
    """Of each key that differs among members; those with the largest range first.

    Args:
        members: the values of each member's keys. A key that does nothing for a member is missing in it.
        metrics: the val metric of each member.
    """
    found = []
    for key in dict.fromkeys(key for member in members for key in member):
        groups: dict[str, list[float]] = {}
        for label, metric in sorted(zip(_labels([m.get(key, "-") for m in members]), metrics, strict=True)):
            groups.setdefault(label[1], []).append(metric)
        if len(groups) > 1:
            values = (ValueMean(label, len(of), fmean(of), min(of), max(of)) for label, of in groups.items())
            found.append(Contribution(key, tuple(values)))
    return tuple(sorted(found, key=lambda each: each.range, reverse=True))


def is_number(value: Any) -> bool:
    """Whether a value has a place on a scale; true and false have none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _labels(values: Sequence[Any]) -> list[tuple[int, str]]:
    """The place and the label of each value's group: the value itself, or its third of many numbers."""
    numbers = sorted({value for value in values if is_number(value)})
    others = list(dict.fromkeys(value_text(value) for value in values if not is_number(value)))
    thirds = [third.tolist() for third in np.array_split(np.array(numbers), _NUM_RANGES)]
    groups = thirds if len(numbers) > _MAX_VALUES else [[number] for number in numbers]
    labels: dict[float, tuple[int, str]] = {}
    for place, group in enumerate(groups):
        ends = dict.fromkeys([value_text(group[0]), value_text(group[-1])])
        labels |= dict.fromkeys(map(float, group), (place, " to ".join(ends)))
    return [
        labels[float(value)] if is_number(value) else (len(groups) + others.index(text), text)
        for value in values
        for text in [value_text(value)]
    ]
