"""Runs: what the pipeline left of one experiment, as pages and comparisons show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.contract import FeatureContract
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.extract import Limits
from pipeline.settings.sweep import value_text
from pipeline.settings.tasks import TASKS, TaskFacts

_DIGITS = 8  # of a digest


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
    contracts: tuple[FeatureContract, ...]  # of its features, or of those of each stream
    inputs: Mapping[str, str]  # digests of features and manifest; {}: unknown
    manifest: Path | None  # of its training; None: unknown
    split: str  # whose clips were answered; "": of none
    predictions: Any  # the table of `prediction_table`; None: it was not evaluated
    # By fold, of each seed such a table about the fold's test clips; {}: the run has one split.
    folds: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)  # by model, as `Evaluation.as_json`
    summary: str = ""  # of the evaluation, for people: a table and a sentence
    curves: Mapping[str, Mapping[str, Curve]] = field(default_factory=dict)  # by model and metric
    training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by model, as `best_metrics`
    extraction: Mapping[str, Any] = field(default_factory=dict)  # the report of the extraction

    @property
    def facts(self) -> TaskFacts:
        """Those of its task."""
        return TASKS[self.task]

    @property
    def limits(self) -> Limits:
        """The limits of what its extraction decoded."""
        return Limits(**self._below("extract.limits."))

    @property
    def evaluation(self) -> EvaluateConfig:
        """How it was, or would be, evaluated."""
        return EvaluateConfig(**self._below("evaluate."))

    def _below(self, prefix: str) -> dict[str, Any]:
        return {key.removeprefix(prefix): v for key, v in self.settings.items() if key.startswith(prefix)}


def differing_settings(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    """The settings that differ, by dotted key: the value of each run; `-` where it does nothing.

    A section that not all runs have, as a checkpoint by itself, is left out. Digests are cut.
    """
    every = [_sections(run) for run in runs]
    rows = {}
    for section in every[0]:
        if all(section in each for each in every):
            for key in dict.fromkeys(key for each in every for key in each[section]):
                rows[key] = tuple(each[section].get(key, "-") for each in every)
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _sections(run: Run) -> dict[str, dict[str, str]]:
    """The settings of a run for people, by dotted key, by section; the digest of its manifest, if known."""
    sections: dict[str, dict[str, str]] = {}
    for key, value in run.settings.items():
        section = key.partition(".")[0]
        text = value[:_DIGITS] if section == "code" else value_text(value)
        sections.setdefault(section, {})[key] = text
    if "manifest" in run.inputs:
        sections["digest"] = {"digest.manifest": run.inputs["manifest"][:_DIGITS]}
    return sections
