"""Metrics: numbers from a model's answers, with bootstrap intervals; text.py has those of texts."""

from pipeline.learn.metrics.intervals import (
    Estimate,
    Measure,
    Units,
    bootstrap_interval,
    estimate,
    mcnemar_p,
    resample,
)
from pipeline.learn.metrics.labels import best_thresholds, measure_labels
from pipeline.learn.metrics.numbers import (
    UNLABELLED,
    class_scores,
    json_numbers,
    mean_average_precision,
    measure_classes,
    measure_loss,
    measure_together,
    measure_values,
)
from pipeline.learn.metrics.segments import edit_distance, measure_segments

__all__ = [
    "UNLABELLED",
    "Estimate",
    "Measure",
    "Units",
    "best_thresholds",
    "bootstrap_interval",
    "class_scores",
    "edit_distance",
    "estimate",
    "json_numbers",
    "mcnemar_p",
    "mean_average_precision",
    "measure_classes",
    "measure_labels",
    "measure_loss",
    "measure_segments",
    "measure_together",
    "measure_values",
    "resample",
]
