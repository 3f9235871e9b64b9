"""Intervals: what other clips would have given, from draws of the clips with replacement (Efron 1979)."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

# How often each of N clips counts (N,) -> metrics by name; NaN where they are not defined.
Measure = Callable[[np.ndarray], dict[str, float]]

# Between equal models, the bootstrap's interval of 20 clips misses 0 in 7 of 100 cases, where it should in 5;
# that of 10 clips in 10, of 6 in 13 (Student's t of the mean of normal differences, for 1.96 deviations).
_MIN_UNITS_OF_VERDICT = 20

# Metrics that are means, over clips, of a number from 0 to 1.
_SHARES = {"accuracy", "accuracy_top5", "edit", "exact_match", "token_accuracy"}

# Metrics that are larger in draws than on the clips drawn from, and on these larger than in truth: a clip
# that is drawn twice confirms itself. So percentiles of draws are too high by twice the bias. With 60 clips
# and 10 labels, they hold a true mAP of 0.39 in 50 of 100 cases; mirrored at the value, in 89.
_BIASED = {"mAP", "mAP_25", "ece"}

_Z = NormalDist().inv_cdf(0.975)  # 95 % of a normal distribution lie within this many deviations


@dataclass(frozen=True)
class Units:
    """What is drawn with replacement: each group of clips as a whole, and each clip without a group.

    Clips of one group depend on each other: a hundred clips of ten people say less than those of a hundred.
    """

    places: np.ndarray  # (N,) the number of each clip's unit

    @classmethod
    def of(cls, groups: Iterable[Hashable]) -> "Units":
        """The units of N clips with these groups; None: the clip has none."""
        names: list[Hashable] = [group or (place,) for place, group in enumerate(groups)]
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return cls(np.array([numbers[name] for name in names]))

    @property
    def num_clips(self) -> int:
        """N."""
        return len(self.places)

    def __len__(self) -> int:
        """The number of units."""
        return int(self.places.max()) + 1

    @property
    def noun(self) -> str:
        """`groups`, or `clips` where no two clips are of one group."""
        return "groups" if len(self) < self.num_clips else "clips"

    def text(self, noun: str = "") -> str:
        """`143`, or `570 in 256 groups`; with a noun `143 test clips`."""
        groups = f"in {len(self)} groups" if self.noun == "groups" else ""
        return " ".join(filter(None, [str(self.num_clips), noun, groups]))

    @property
    def whole(self) -> np.ndarray:
        """Each clip once (N,)."""
        return np.ones(self.num_clips)

    def outside(self, counts: np.ndarray) -> np.ndarray:
        """The clips that do not count in a draw, each once (N,)."""
        return np.where(counts, 0.0, 1.0)

    def draws(self, *, num_resamples: int, seed: int | np.random.Generator) -> Iterator[np.ndarray]:
        """How often each clip (N,) counts in each of `num_resamples` draws of as many units as there are."""
        rng = np.random.default_rng(seed)
        for _ in range(num_resamples):
            drawn = rng.integers(len(self), size=len(self))
            yield np.bincount(drawn, minlength=len(self))[self.places]

    def shortage(self, question: str, *, split: str = "") -> str:
        """`too few test clips to tell <question> (19; it takes 20)`; "" if there are enough for a verdict."""
        if len(self) >= _MIN_UNITS_OF_VERDICT:
            return ""
        noun = " ".join(filter(None, [split, self.noun]))
        return f"too few {noun} to tell {question} ({len(self)}; it takes {_MIN_UNITS_OF_VERDICT})"


@dataclass(frozen=True)
class Estimate:
    """A metric of some clips, with its 95 % confidence interval: as if other clips had been drawn."""

    value: float
    low: float  # NaN, like `high`, where the interval can't be known
    high: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """The interval's ends; None where they can't be known."""
        return None if math.isnan(self.low) else (self.low, self.high)


def resample(measure: Measure, *, units: Units, num_resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Each metric, as an array (R,), of R draws of the units with replacement.

    The same seed gives the same draws, so that the metrics of two models can be subtracted draw by draw.
    """
    metrics = [measure(counts) for counts in units.draws(num_resamples=num_resamples, seed=seed)]
    return {name: np.array([values[name] for values in metrics]) for name in metrics[0]}


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """The ends of the middle 95 % of the values (R,), without NaN."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def estimate(
    name: str, value: float, draws: np.ndarray, *, num_units: int, is_difference: bool = False
) -> Estimate:
    """The metric `name` of `num_units` units, or the difference of two models in it, with its interval.

    The interval comes from the metric's resamples (R,): their percentiles; of a metric that resampling makes
    larger, these mirrored at the value (the basic bootstrap, eq. 5.6 in Davison and Hinkley 1997), and NaN
    where the value is outside of them. If all resamples are equal, they say nothing about other clips. For a
    metric that is a mean over clips of bounded numbers, equal resamples mean that all clips have the same
    number; the score interval of Wilson (1927; eq. 4 in Brown, Cai and DasGupta 2001) of 0 in `num_units`
    then bounds the share of clips with another number.
    """
    known = draws[~np.isnan(draws)]
    if len(known) and np.ptp(known) > 1e-9 * np.abs(known).max():  # rounding is less
        low, high = bootstrap_interval(known)
        if name in _BIASED:
            low, high = 2 * value - high, 2 * value - low
            if not low <= value <= high:  # the bias of so few clips is larger than the deviation
                return Estimate(value, math.nan, math.nan)
            if not is_difference:
                low, high = max(low, 0.0), min(high, 1.0)
        return Estimate(value, low, high)
    if not len(known) or name not in _SHARES:
        return Estimate(value, math.nan, math.nan)
    lowest, highest = (-1.0, 1.0) if is_difference else (0.0, 1.0)
    others = _Z**2 / (num_units + _Z**2)
    return Estimate(value, value - others * (value - lowest), value + others * (highest - value))


def mcnemar_p(num_first: int, num_second: int) -> float:
    """The p value of McNemar's exact test (1947): two-sided, of whether two models are right equally often.

    Args:
        num_first: clips about which the first model alone is right.
        num_second: clips about which the second model alone is right.
    """
    number = num_first + num_second
    ways = total = 1  # of choosing so many clips of `number`, and no more than so many
    for chosen in range(min(num_first, num_second)):
        ways = ways * (number - chosen) // (chosen + 1)
        total += ways
    return min(1.0, 2 * total / (1 << number))
