"""Folds: one metric of models that were trained and tested on several splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.learn.answers import Tally
from pipeline.learn.metrics import Estimate, Units, bootstrap_interval


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
    folds: Sequence[Sequence[Tally]],
    *,
    groups: Mapping[str, str | None],
    num_resamples: int,
    seed: int,
) -> FoldScore:
    """The headline metric of one model over folds. With the same seed, those of two models can be subtracted.

    A draw takes folds with replacement, and in each of them groups of clips with replacement: as if other
    clips had been drawn, and split in another way. A fold that is drawn twice has other clips each time.

    Args:
        folds: of each fold the tallies of its seeds, about the same clips.
        groups: by clip id, the group that is drawn as a whole; None: the clip alone.
        num_resamples: R, the number of draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    values, draws = [], []
    for tallies in folds:
        units = Units.of(groups.get(clip_id) for clip_id in tallies[0].clip_ids)
        counts = [np.ones(units.num_clips), *units.draws(num_resamples=num_resamples, seed=rng)]
        metrics = np.array([[tally.metric(each) for each in counts] for tally in tallies]).mean(axis=0)
        values.append(metrics[0])
        draws.append(metrics[1:])
    chosen = rng.integers(len(folds), size=(num_resamples, len(folds)))
    clips = rng.integers(num_resamples, size=(num_resamples, len(folds)))
    return FoldScore(np.array(values), np.array(draws)[chosen, clips].mean(axis=1))
