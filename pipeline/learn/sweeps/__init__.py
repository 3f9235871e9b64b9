"""Sweeps: which of many members train on, which of them are as good as the best, and what made them so."""

from pipeline.learn.sweeps.contributions import (
    Contribution,
    ValueMean,
    contributions,
    is_number,
)
from pipeline.learn.sweeps.halving import TrainUntil, halve, num_kept
from pipeline.learn.sweeps.ranking import (
    Candidate,
    Ranked,
    Ranking,
    rank,
    val_metric,
    val_units,
)

__all__ = [
    "Candidate",
    "Contribution",
    "Ranked",
    "Ranking",
    "TrainUntil",
    "ValueMean",
    "contributions",
    "halve",
    "is_number",
    "num_kept",
    "rank",
    "val_metric",
    "val_units",
]
