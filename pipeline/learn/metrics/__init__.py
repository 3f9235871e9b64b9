"""Metrics: counts and means over clips, their bootstrap intervals, and those of texts (text.py)."""

from pipeline.learn.metrics.numbers import (
    UNLABELLED,
    Estimate,
    Measure,
    class_scores,
    estimate,
    interval,
    json_numbers,
    measure_classes,
    measure_loss,
    measure_values,
    resample,
)

__all__ = [
    "UNLABELLED",
    "Estimate",
    "Measure",
    "class_scores",
    "estimate",
    "interval",
    "json_numbers",
    "measure_classes",
    "measure_loss",
    "measure_values",
    "resample",
]
