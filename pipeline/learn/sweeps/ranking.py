"""Ranking: which settings of a sweep are as good as the best, and how much too good the best one looks.

All members answer about the same val clips and are compared on the same draws of them: the paired bootstrap.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.learn.folds import FoldUnits
from pipeline.learn.metrics import Estimate, Units
from pipeline.learn.tasks import Predictions, Task


@dataclass(frozen=True)
class Candidate:
    """A trained member: how good it is on the val clips, as a function of how often each clip counts."""

    name: str
    setting: str  # the same for members that differ in the seed alone
    metric: Callable[[Any], float]  # of a draw: of counts (N,), or over folds
    loss: float  # of all val clips; of candidates with the same metric, the lower one is better


@dataclass(frozen=True)
class Ranked:
    """A setting's place: its members differ in the seed alone."""

    members: tuple[str, ...]  # the best first
    values: tuple[float, ...]  # the val metric of each
    value: float  # their mean
    difference: Estimate | None  # from the winner's mean, with its simultaneous interval; the winner has none

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval of the difference is known, and 0 is outside of it."""
        ends = self.difference.interval if self.difference else None
        return ends is not None and not ends[0] <= 0 <= ends[1]


@dataclass(frozen=True)
class Ranking:
    """The settings of a sweep, the best first."""

    settings: tuple[Ranked, ...]
    units: Units  # of the clips
    optimism: float  # by how much the winner's val metric is better than that of other clips would be

    @property
    def winner(self) -> str:
        """The best member of the best setting."""
        return self.settings[0].members[0]

    @property
    def values(self) -> dict[str, float]:
        """The val metric of each member."""
        return {
            name: value
            for setting in self.settings
            for name, value in zip(setting.members, setting.values, strict=True)
        }

    @property
    def num_indistinguishable(self) -> int:
        """Of settings that may be as good as the winner."""
        return sum(not setting.is_distinguishable for setting in self.settings[1:])


def val_metric(predictions: Predictions, *, task: Task, monitor: str) -> Callable[[np.ndarray], float]:
    """A model's metric `monitor`, as a function of how often each clip counts; clips are sorted by id."""
    measure = task.measure_monitor(predictions, monitor)
    places = np.argsort(_by_id(predictions))  # of each of the predictions' clips among the sorted ones
    return lambda counts: float(task.monitored(measure(counts[places]), monitor))


def val_units(predictions: Predictions) -> Units:
    """What is drawn of the clips; they are sorted as in `val_metric`."""
    return Units.of(predictions.clips[number].group for number in _by_id(predictions))


def _by_id(predictions: Predictions) -> list[int]:
    """The numbers of the clips, sorted by the clips' ids."""
    return sorted(range(len(predictions.clips)), key=lambda number: predictions.clips[number].clip_id)


def rank(
    candidates: Sequence[Candidate], *, units: Units | FoldUnits, sign: int, num_resamples: int, seed: int
) -> Ranking:
    """Rank the settings of candidates by the mean of their members' metrics.

    The intervals of the differences hold together: where all settings are equally good, a sweep in twenty has
    one whose interval leaves 0 out. The winner was chosen for its value, so the correction is that of all
    pairs of settings.

    Args:
        candidates: the members that were trained to their end.
        units: what is drawn.
        sign: 1 if more is better, -1 if less is.
        num_resamples: R, the number of draws.
        seed: of the draws.
    """
    whole = units.whole
    best_first = sorted(candidates, key=lambda each: _goodness(sign * each.metric(whole), [each]))[::-1]
    groups: dict[str, list[int]] = {}
    for number, candidate in enumerate(best_first):
        groups.setdefault(candidate.setting, []).append(number)
    draws: list[Any] = list(units.draws(num_resamples=num_resamples, seed=seed))
    table = np.array(
        [[each.metric(counts) for counts in (whole, *draws)] for each in best_first]
    )  # (M, 1 + R)
    ranked = sorted(
        groups.values(),
        key=lambda numbers: _goodness(sign * table[numbers, 0].mean(), [best_first[n] for n in numbers]),
    )[::-1]
    means = np.array([table[numbers].mean(axis=0) for numbers in ranked])  # (S, 1 + R)
    of_clips = units if isinstance(units, Units) else units.units
    differences = _differences(means[:, 0], means[:, 1:], num_units=len(of_clips))
    settings = tuple(
        Ranked(
            members=tuple(best_first[number].name for number in numbers),
            values=tuple(table[numbers, 0].tolist()),
            value=float(mean),
            difference=difference,
        )
        for numbers, mean, difference in zip(ranked, means[:, 0], differences, strict=True)
    )
    metrics = [each.metric for each in best_first]
    outside = map(units.outside, draws)
    optimism = _optimism(metrics, ranked, table[:, 1:], outside=outside, sign=sign)
    return Ranking(settings, of_clips, optimism)


def _goodness(value: float, candidates: Sequence[Candidate]) -> tuple[float, float]:
    """What settings and members are sorted by: a value of which more is better, then the loss."""
    return -math.inf if math.isnan(value) else value, -fmean(each.loss for each in candidates)


def _differences(values: np.ndarray, draws: np.ndarray, *, num_units: int) -> list[Estimate | None]:
    """From the first of the values (S,), with intervals by max-t over all pairs of settings; the first: None.

    An interval reaches q standard errors to each side. q is the 95 % quantile, over the draws (S, R), of the
    largest deviation of any pair's difference, in standard errors of that pair: Tukey's test by bootstrap
    (Romano and Wolf 2005). Draws of few units vary too little, and standard errors of few units are hardly
    known: both are mended as in Student's t (the expanded intervals of Hesterberg 2015). Among equal runs on
    20 units, an interval leaves 0 out in 7 of 100 cases for 5 runs, instead of 13, and in 8 for 20 runs,
    instead of 28.
    """
    deviations = (draws - values[:, None])[~np.isnan(values)]  # undefined ones are the last
    deviations = deviations[:, ~np.isnan(deviations).any(axis=0)]  # (S, R)
    if not deviations.size:
        return [None] + [Estimate(math.nan, math.nan, math.nan)] * (len(values) - 1)
    least = 1e-9 * np.nanmax(np.abs(values))  # a smaller standard error is rounding
    largest = np.zeros(deviations.shape[1])
    errors = np.full(len(values), math.nan)  # of the differences from the first
    for number, deviation in enumerate(deviations):
        pairs = deviations[number + 1 :] - deviation
        deviating = pairs.std(axis=1)
        known = deviating > least
        largest = np.vstack([largest, np.abs(pairs[known]) / deviating[known, None]]).max(axis=0)
        if number == 0:
            errors[1 : len(deviations)] = np.where(known, deviating, math.nan)
    reach = errors[1:] * _as_of_student(float(np.quantile(largest, 0.95)), num_units)
    differences = values[1:] - values[0]
    columns = (differences, differences - reach, differences + reach)
    return [None] + [Estimate(*ends) for ends in zip(*(column.tolist() for column in columns), strict=True)]


def _as_of_student(deviations: float, num_units: int) -> float:
    """So many deviations of draws of the units, as deviations of Student's t that are as rare.

    The quantile of t is Fisher's and Cornish's expansion of that of the normal distribution (Abramowitz and
    Stegun, 26.7.5).
    """
    freedom, z = float(max(1, num_units - 1)), deviations
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.sqrt(num_units / freedom) * sum(term / freedom**n for n, term in enumerate(terms))


def _optimism(
    metrics: Sequence[Callable[[Any], float]],
    ranked: Sequence[Sequence[int]],
    table: np.ndarray,
    *,
    outside: Iterable[Any],
    sign: int,
) -> float:
    """How much the choice of the winner makes of its val metric, measured on draws of the clips.

    In each draw the best setting's best member is chosen as in the sweep, and looked at on the clips that
    are outside of the draw. The winner of the sweep is looked at likewise, which takes out all that is no
    matter of choice. A draw of clips from a draw of clips varies twice as much as the clips do: hence the
    root of a half.

    Args:
        metrics: of each member (M), of a draw.
        ranked: the numbers of each setting's members, the best setting and the best member first.
        table: (M, R) the members' metrics of the draws.
        outside: R times the clips outside of a draw, each once.
        sign: 1 if more is better, -1 if less is.
    """
    goodness = np.where(np.isnan(table), -np.inf, sign * table)
    gains = []
    for others, inside in zip(outside, goodness.T, strict=True):
        setting = max(ranked, key=lambda numbers: inside[numbers].mean())
        chosen, winner = max(setting, key=inside.__getitem__), ranked[0][0]
        gain = 0.0
        if chosen != winner:
            ahead_inside = inside[chosen] - inside[winner]
            ahead_outside = sign * (metrics[chosen](others) - metrics[winner](others))
            gain = ahead_inside - ahead_outside
        gains.append(gain)
    finite = [gain for gain in gains if math.isfinite(gain)]
    return max(0.0, math.sqrt(0.5) * fmean(finite)) if finite else math.nan
