"""Runs: what the pipeline left of one experiment, as pages and comparisons show it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.contract import FeatureContract
from pipeline.settings.tasks import TASKS, TaskFacts


@dataclass(frozen=True)
class Curve:
    """A metric after each epoch of training; NaN where a split has no such number."""

    train: tuple[float, ...]
    val: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """One trained model with its controls, and its answers about the clips of a split."""

    name: str  # of the experiment or revision; `workspace`; or a checkpoint's path
    # By dotted key, such as train.hidden_size; code.recurrent and code.evaluate are digests of the code.
    settings: Mapping[str, Any]
    task: str
    contract: FeatureContract  # of its features
    inputs: Mapping[str, str]  # digests of features and manifest; {}: unknown
    manifest: Path
    split: str  # whose clips were answered
    predictions: pa.Table | None  # as `prediction_table` makes it; None: it was not evaluated
    metrics: Mapping[str, Any] = field(default_factory=dict)  # by model, as `Evaluation.as_json`
    summary: str = ""  # of the evaluation, for people: a table and a sentence
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)  # by model and metric
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by model, as `best_metrics`
    extraction: Mapping[str, Any] = field(default_factory=dict)  # the report of the extraction

    @property
    def facts(self) -> TaskFacts:
        """Those of its task."""
        return TASKS[self.task]
