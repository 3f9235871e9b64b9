"""Answers: the headline metric of a recorded table of answers, for any draw of its clips."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.learn.metrics import mean_average_precision
from pipeline.learn.metrics.text import count_word_errors
from pipeline.learn.vocabulary import measured_words
from pipeline.settings.tasks import TASKS

# Columns of `prediction_table` that say what was asked about a clip, and what is right.
_ASKED = ("frame_seconds", "value", "question", "truth")


_Counts = tuple[Callable[[np.ndarray], float], np.ndarray, str]  # metric, by_clip and ahead of a `Tally`


@dataclass(frozen=True)
class Tally:
    """How good a model's answers about N clips are, by its task's headline metric; clips are sorted by id."""

    clip_ids: tuple[str, ...]  # N
    metric: Callable[[Any], float]  # from how often clips count (N,), NaN where none does; see `over_folds`
    by_clip: np.ndarray  # (N,) of each clip alone; more is better
    ahead: str  # of a model for which that is more than for another, `{}`
    loss: float  # of all clips; NaN: no answer has one


def tally(predictions: pa.Table, *, model: str = "recurrent") -> Tally:
    """Count one model's answers in a table that `pipeline.learn.evaluation.prediction_table` describes."""
    rows = predictions.filter(pc.field("model") == model)
    clip_ids, clips = np.unique(rows["clip_id"].to_numpy(), return_inverse=True)  # (N,), (M,)
    counters = {"mAP": _count_labels, "rmse": _count_errors, "word_error_rate": _count_words}
    count = counters.get(TASKS[task_of(predictions)].headline, _count_hits)
    losses, weights = (rows[name].to_numpy() for name in ("loss", "loss_weight"))
    known = ~np.isnan(losses)
    loss = float(np.average(losses[known], weights=weights[known])) if weights[known].any() else float("nan")
    return Tally(tuple(clip_ids.tolist()), *count(rows, clips), loss)


def _count_hits(rows: pa.Table, clips: np.ndarray) -> _Counts:
    """The share of answers that are right."""
    num_right, num_answers = np.bincount(clips, hits(rows)), np.bincount(clips)  # (N,)
    ahead = "is right and {} wrong" if num_answers.max() == 1 else "has more right answers than {}"
    return lambda counts: _ratio(num_right @ counts, num_answers @ counts), num_right / num_answers, ahead


def _count_errors(rows: pa.Table, clips: np.ndarray) -> _Counts:
    """The root of the mean squared error; of several values, the mean of theirs."""
    values = rows["value"].to_numpy() - 1
    squares = np.zeros((values.max() + 1, clips.max() + 1))  # (V, N)
    squares[values, clips] = np.square(rows["answer"].to_numpy() - rows["truth"].to_numpy())

    def root_mean_square(counts: np.ndarray) -> float:
        return float(np.mean([_ratio(each @ counts, counts.sum()) ** 0.5 for each in squares]))

    return root_mean_square, -np.sqrt(squares.mean(axis=0)), "is closer than {}"


def _count_words(rows: pa.Table, clips: np.ndarray) -> _Counts:
    """The word error rate of a clip's answer, of which there is one."""
    errors, lengths = count_word_errors(rows["answer"].to_pylist(), rows["truth"].to_pylist())
    num_wrong, num_words = np.bincount(clips, errors), np.bincount(clips, lengths)  # (N,)
    rates = num_wrong / np.maximum(num_words, 1)
    return (
        lambda counts: _ratio(num_wrong @ counts, num_words @ counts),
        -rates,
        "has fewer wrong words than {}",
    )


def _count_labels(rows: pa.Table, clips: np.ndarray) -> _Counts:
    """mAP, which ranks the rows of all clips; of a clip, how few labels a row are wrong."""
    classes = json.loads(rows.schema.metadata[b"classes"])
    truth, said = (label_marks(rows[name], classes) for name in ("truth", "answer"))  # (M, K)
    probabilities = pc.list_flatten(rows["probabilities"]).to_numpy().reshape(truth.shape)
    ranked = mean_average_precision(probabilities, truth)
    num_wrong = np.bincount(clips, (truth ^ said).sum(axis=1)) / np.bincount(clips)  # (N,)
    return lambda counts: ranked(counts[clips]), -num_wrong, "has fewer wrong labels than {}"


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


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


def label_marks(labels: pa.ChunkedArray, classes: Sequence[str]) -> np.ndarray:
    """Where rows (M, K) have each class, from a column of the table: a class a row, or a list of them."""
    found = np.zeros((len(labels), len(classes)), dtype=bool)
    is_list = pa.types.is_list(labels.type)
    rows = pc.list_parent_indices(labels).to_numpy() if is_list else np.arange(len(labels))
    names = pc.list_flatten(labels) if is_list else labels
    found[rows, pc.index_in(names, pa.array(classes)).to_numpy()] = True
    return found


def asked(predictions: pa.Table, *, model: str = "recurrent") -> Mapping[str, list[dict[str, Any]]]:
    """What a model was asked about each clip, and what is right: a row an answer."""
    rows = predictions.filter(pc.field("model") == model)
    columns = [name for name in _ASKED if name in rows.column_names]
    found: dict[str, list[dict[str, Any]]] = {}
    for clip_id, row in zip(rows["clip_id"].to_pylist(), rows.select(columns).to_pylist(), strict=True):
        found.setdefault(clip_id, []).append(row)
    return found
