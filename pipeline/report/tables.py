"""Tables of training and evaluation that DVC draws: CSV files."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from pipeline.learn.metrics import UNLABELLED, class_scores, json_numbers
from pipeline.learn.tasks import Classification, Predictions, Regression, Task
from pipeline.learn.training import Metrics
from pipeline.system.files import write_atomically


def write_curves(folder: Path, history: Sequence[Metrics]) -> None:
    """A CSV a metric, with columns epoch, train, val; empty where a split has no such number."""
    finite = [{split: json_numbers(values) for split, values in metrics.items()} for metrics in history]
    for name in {name: None for metrics in history[-1].values() for name in metrics}:
        rows = (
            [epoch, *(metrics[split].get(name) for split in ("train", "val"))]
            for epoch, metrics in enumerate(finite)
        )
        _write_csv(folder / f"{name}.csv", ["epoch", "train", "val"], rows)


def write_tables(folder: Path, predictions: Predictions, *, task: Task) -> None:
    """The tables of a model's answers: confusion.csv and values.csv, empty for another task, and classes.csv.

    The first two are always there: DVC misses a plot's file that is not.
    """
    classification = task if isinstance(task, Classification) else None
    write_confusion(folder / "confusion.csv", predictions, task=classification)
    write_values(folder / "values.csv", predictions, task=task if isinstance(task, Regression) else None)
    if classification:
        write_class_table(folder / "classes.csv", predictions, task=classification)


def write_confusion(path: Path, predictions: Predictions, *, task: Classification | None) -> None:
    """CSV for DVC's template `confusion`: a row a clip or labelled frame; clip_id, actual, predicted."""
    rows: Iterable[Sequence[object]] = ()
    if task:
        outputs, targets, clips = predictions.rows(per_frame=task.per_frame)
        rows = (
            [predictions.clips[number].clip_id, task.classes[target], task.classes[answer]]
            for number, target, answer in zip(
                clips.tolist(), targets.tolist(), outputs.argmax(dim=1).tolist(), strict=True
            )
            if target != UNLABELLED
        )
    _write_csv(path, ["clip_id", "actual", "predicted"], rows)


def write_class_table(path: Path, predictions: Predictions, *, task: Classification) -> None:
    """CSV: a row a class, with columns class, num_rows (clips or frames), precision, recall, f1."""
    outputs, targets, _ = predictions.rows(per_frame=task.per_frame)
    scores = [asdict(score) for score in class_scores(outputs, targets)]
    _write_csv(
        path,
        ["class", *scores[0]],
        ([name, *score.values()] for name, score in zip(task.classes, scores, strict=True)),
    )


def write_values(path: Path, predictions: Predictions, *, task: Regression | None) -> None:
    """CSV: a row a clip and value, with columns clip_id, value (counted from 1), actual, predicted."""
    rows: Iterable[Sequence[object]] = ()
    if task:
        outputs, targets, _ = predictions.rows(per_frame=False)
        pairs = torch.stack([task.interpret(targets.double()), task.interpret(outputs.double())], dim=-1)
        rows = (
            [clip.clip_id, number, *pair]
            for clip, values in zip(predictions.clips, pairs.tolist(), strict=True)  # pairs: (N, V, 2)
            for number, pair in enumerate(values, start=1)
        )
    _write_csv(path, ["clip_id", "value", "actual", "predicted"], rows)


def _write_csv(path: Path, header: list[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
