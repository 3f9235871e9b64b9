"""Answers: the headline metric of a recorded table of answers, for any draw of its clips."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.learn.vocabulary import measured_words
from pipeline.settings.tasks import TASKS

# Columns of `prediction_table` that say what was asked about a clip, and what is right.
_ASKED = ("frame_seconds", "value", "question", "truth")


@dataclass(frozen=True)
class Tally:
    """What a model's answers about N clips, sorted by their ids, add to its task's headline metric."""

    clip_ids: tuple[str, ...]  # N
    amounts: np.ndarray  # (V, N) right answers of each clip, V = 1; or squared errors of its V values
    num_answers: np.ndarray  # (N,) that each clip counts; 1 for numbers
    is_error: bool  # amounts are squared errors
    loss: float  # of all clips; NaN: no answer has one

    def metric(self, counts: np.ndarray) -> float:
        """The headline metric where clips count so often (N,); NaN where none counts."""
        total = counts @ self.num_answers
        if not total:
            return float("nan")
        means = self.amounts @ counts / total  # (V,)
        return float((np.sqrt(means) if self.is_error else means).mean())

    def by_clip(self) -> np.ndarray:
        """(N,) the share of right answers; of numbers, the root of the mean squared error."""
        means: np.ndarray = self.amounts.mean(axis=0) / self.num_answers
        return np.sqrt(means) if self.is_error else means


def tally(predictions: pa.Table, *, model: str = "recurrent") -> Tally:
    """Count one model's answers in a table that `pipeline.learn.evaluation.prediction_table` describes."""
    rows = predictions.filter(pc.field("model") == model)
    clip_ids, clips = np.unique(rows["clip_id"].to_numpy(), return_inverse=True)  # (N,), (M,)
    is_error = TASKS[task_of(predictions)].headline == "rmse"
    if is_error:
        values = rows["value"].to_numpy() - 1
        amounts = np.zeros((values.max() + 1, len(clip_ids)))
        amounts[values, clips] = np.square(rows["answer"].to_numpy() - rows["truth"].to_numpy())
        num_answers = np.ones(len(clip_ids))
    else:
        amounts = np.bincount(clips, hits(rows), minlength=len(clip_ids))[None]
        num_answers = np.bincount(clips, minlength=len(clip_ids)).astype(float)
    losses, weights = (rows[name].to_numpy() for name in ("loss", "loss_weight"))
    known = ~np.isnan(losses)
    loss = float(np.average(losses[known], weights=weights[known])) if weights[known].any() else float("nan")
    return Tally(tuple(clip_ids.tolist()), amounts, num_answers, is_error, loss)


def task_of(predictions: pa.Table) -> str:
    """The name of the task."""
    name: bytes = predictions.schema.metadata[b"task"]
    return name.decode()


def hits(rows: pa.Table) -> np.ndarray:
    """(M,) bool: which answers are right. A caption is, if its words are those of one of the clip's captions.

    No answer in numbers is.
    """
    truth, answer = rows["truth"], rows["answer"]
    if pa.types.is_list(answer.type):  # several labels: all have to be right
        return np.array([a == b for a, b in zip(truth.to_pylist(), answer.to_pylist(), strict=True)], bool)
    if pa.types.is_list(truth.type):
        pairs = zip(truth.to_pylist(), answer.to_pylist(), strict=True)
        return np.array([measured_words(said) in map(measured_words, texts) for texts, said in pairs], bool)
    if pa.types.is_floating(truth.type):
        return np.zeros(len(rows), bool)
    found: np.ndarray = pc.equal(truth, answer).to_numpy()
    return found


def asked(predictions: pa.Table, *, model: str = "recurrent") -> Mapping[str, list[dict[str, Any]]]:
    """What a model was asked about each clip, and what is right: a row an answer."""
    rows = predictions.filter(pc.field("model") == model)
    columns = [name for name in _ASKED if name in rows.column_names]
    found: dict[str, list[dict[str, Any]]] = {}
    for clip_id, row in zip(rows["clip_id"].to_pylist(), rows.select(columns).to_pylist(), strict=True):
        found.setdefault(clip_id, []).append(row)
    return found
