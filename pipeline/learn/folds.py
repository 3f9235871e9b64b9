"""Folds: one metric of models that were trained and tested on several splits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from pipeline.learn.answers import Tally
from pipeline.learn.metrics import Estimate, Units, bootstrap_interval

# The folds that are drawn, by their numbers, and how often each of their test clips counts (N,).
FoldDraw = Sequence[tuple[int, np.ndarray]]


@dataclass(frozen=True)
class FoldUnits:
    """What is drawn over F folds: folds with replacement, and in each of them its units with replacement.

    It is as if other clips had been filmed, and split in another way. A fold that is drawn twice has other
    clips each time.
    """

    folds: tuple[Units, ...]  # F, of the test clips of each
    units: Units  # of the test clips of all folds

    @classmethod
    def of(cls, clips: Sequence[Sequence[str]], *, groups: Mapping[str, str | None]) -> "FoldUnits":
        """The units of each fold's test clips, given by their ids; a clip of several folds is one unit."""
        names = [[groups.get(clip_id) or (clip_id,) for clip_id in fold] for fold in clips]
        return cls(tuple(map(Units.of, names)), Units.of(name for fold in names for name in fold))

    @property
    def whole(self) -> FoldDraw:
        """Each fold once, and each of its clips once."""
        return [(number, units.whole) for number, units in enumerate(self.folds)]

    def draws(self, *, num_resamples: int, seed: int) -> Iterator[FoldDraw]:
        """`num_resamples` draws of as many folds as there are."""
        rng = np.random.default_rng(seed)
        for _ in range(num_resamples):
            numbers = rng.integers(len(self.folds), size=len(self.folds)).tolist()
            yield [(number, next(self.folds[number].draws(num_resamples=1, seed=rng))) for number in numbers]

    def outside(self, draw: FoldDraw) -> FoldDraw:
        """Each fold once, with the clips that are not in the draw."""
        counts = [np.zeros(units.num_clips) for units in self.folds]
        for number, drawn in draw:
            counts[number] += drawn
        return [
            (number, units.outside(drawn))
            for number, (units, drawn) in enumerate(zip(self.folds, counts, strict=True))
        ]


@dataclass(frozen=True)
class FoldScore:
    """A metric over F folds."""

    values: np.ndarray  # (F,) of each fold's test clips, the mean over its seeds
    draws: np.ndarray  # (R,) of folds, and of clips in them

    @property
    def mean(self) -> Estimate:
        """The mean over folds, with its interval over folds and clips."""
        return Estimate(float(self.values.mean()), *bootstrap_interval(self.draws))

    @property
    def deviation(self) -> float:
        """The standard deviation of folds (ddof 1)."""
        return float(self.values.std(ddof=1))

    def __sub__(self, other: "FoldScore") -> "FoldScore":
        """The difference of two models in each fold and in each draw."""
        return FoldScore(self.values - other.values, self.draws - other.draws)


def score_folds(
    folds: Sequence[Sequence[Tally]], *, units: FoldUnits, num_resamples: int, seed: int
) -> FoldScore:
    """The headline metric of one model over folds. With the same seed, those of two models can be subtracted.

    Args:
        folds: of each fold the tallies of its seeds, about the same clips.
        units: of these clips.
        num_resamples: R, the number of draws.
        seed: of the draws.
    """
    metric = over_folds(folds).metric
    draws = [metric(draw) for draw in units.draws(num_resamples=num_resamples, seed=seed)]
    return FoldScore(np.array([metric([fold]) for fold in units.whole]), np.array(draws))


def over_folds(folds: Sequence[Sequence[Tally]]) -> Tally:
    """How good a model is over folds: each clip's answers are those of the fold in which it was a test clip.

    The metric takes a `FoldDraw`, and is the mean over its folds. All numbers are means over seeds.

    Args:
        folds: of each fold the tallies of its seeds, about the same clips.
    """

    def metric(draw: FoldDraw) -> float:
        return fmean(fmean(tally.metric(counts) for tally in folds[number]) for number, counts in draw)

    first, *other_seeds = folds[0]
    return Tally(
        clip_ids=tuple(clip_id for fold in folds for clip_id in fold[0].clip_ids),
        metric=metric,
        by_clip=np.concatenate([np.mean([tally.by_clip for tally in fold], axis=0) for fold in folds]),
        ahead="is better than {}" if other_seeds else first.ahead,
        loss=fmean(fmean(tally.loss for tally in fold) for fold in folds),
    )
