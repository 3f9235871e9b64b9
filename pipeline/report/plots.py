"""Plots: the tables that DVC draws, and pictures of some clips' answers."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch

from pipeline.learn.metrics import UNLABELLED, class_scores
from pipeline.learn.tasks import Classification, Predictions, Regression, Task
from pipeline.report.drawings import Timeline, draw_timelines
from pipeline.system.files import write_atomically

NUM_DRAWN = 8  # clips in a picture


def write_plots(folder: Path, predictions: Predictions, *, task: Task) -> None:
    """The tables that DVC draws, empty where the task has no such table, and images/ of some clips."""
    classification = task if isinstance(task, Classification) else None
    regression = task if isinstance(task, Regression) else None
    write_confusion(folder / "confusion.csv", predictions, task=classification)
    write_values(folder / "values.csv", predictions, task=regression)
    if classification:
        write_class_table(folder / "classes.csv", predictions, task=classification)
        if task.per_frame:
            draw_timelines(
                folder / "images/timelines.png", _timelines(predictions), classes=classification.classes
            )


def _timelines(predictions: Predictions) -> list[Timeline]:
    rows = zip(
        predictions.clips, predictions.frame_seconds, predictions.targets, predictions.outputs, strict=True
    )
    return [
        Timeline(clip.clip_id, seconds.numpy(), target.numpy(), output.argmax(dim=-1).numpy())
        for clip, seconds, target, output in islice(rows, NUM_DRAWN)
    ]


def write_confusion(path: Path, predictions: Predictions, *, task: Classification | None) -> None:
    """CSV for DVC's template `confusion`: a row a clip or labelled frame; clip_id, actual, predicted."""
    rows: Iterable[list[object]] = ()
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
    rows: Iterable[list[object]] = ()
    if task:
        outputs, targets, _ = predictions.rows(per_frame=False)
        pairs = torch.stack([task.finish(targets.double()), task.finish(outputs.double())], dim=-1)
        rows = (
            [clip.clip_id, number, *pair]
            for clip, values in zip(predictions.clips, pairs.tolist(), strict=True)  # pairs: (N, V, 2)
            for number, pair in enumerate(values, start=1)
        )
    _write_csv(path, ["clip_id", "value", "actual", "predicted"], rows)


def _write_csv(path: Path, header: list[str], rows: Iterable[list[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
