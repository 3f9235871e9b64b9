"""Runs that never ran: their answers are given."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from scipy import stats  # scikit-learn's own

from pipeline.report.runs import Run
from tests.support.features import make_contract


def student(deviations: float, num_units: int) -> float:
    """So many standard errors of draws of the units, as those of Student's t that are as rare."""
    freedom = num_units - 1
    return float(stats.t.ppf(stats.norm.cdf(deviations), freedom) * math.sqrt(num_units / freedom))


def answer_table(
    clips: Sequence[str], *, task: str = "classification", model: str = "recurrent", **columns: Sequence[Any]
) -> pa.Table:
    """A table of one model's answers, with columns `truth`, `answer` and those that the task has besides."""
    size = len(clips)
    table = pa.table({"model": [model] * size, "clip_id": list(clips), **columns})
    for name in ("loss", "loss_weight"):
        if name not in columns:
            table = table.append_column(name, pa.array([1.0] * size))
    return table.replace_schema_metadata({"task": task})


def make_run(name: str, predictions: pa.Table | None, **fields: Any) -> Run:
    """A run with these answers; `settings` are over those that all have."""
    settings: Mapping[str, Any] = {
        "train.hidden_size": 64,
        "train.seed": 0,
        "code.recurrent": "0123456789abcdef",
        **fields.pop("settings", {}),
    }
    task = "classification" if predictions is None else predictions.schema.metadata[b"task"].decode()
    defaults = {
        "task": task,
        "contracts": (make_contract(),),
        "inputs": {"manifest": "abcdef0123456789"},
        "manifest": Path("manifests/toy.csv"),
        "split": "test",
    }
    return Run(name=name, settings=settings, predictions=predictions, **{**defaults, **fields})


def right_about(name: str, right: str, **fields: Any) -> Run:
    """A run of clips c00, c01, ... with a letter each: 1, the answer is right; 0, it is wrong."""
    clips = [f"c{number:02}" for number in range(len(right))]
    answers = ["yes" if letter == "1" else "no" for letter in right]
    losses = [0.1 if letter == "1" else math.log(10) for letter in right]
    return make_run(
        name, answer_table(clips, truth=["yes"] * len(clips), answer=answers, loss=losses), **fields
    )
