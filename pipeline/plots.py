"""Plots: the tables that DVC draws."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.evaluation import Predictions
from pipeline.files import write_atomically
from pipeline.metrics import class_scores


def write_confusion(path: Path, predictions: Predictions, *, classes: Sequence[str]) -> None:
    """CSV for DVC's template `confusion`: a row a clip, with columns clip_id, actual, predicted."""
    predicted = predictions.outputs.argmax(dim=1).tolist()
    rows = zip(predictions.clip_ids, predictions.targets.tolist(), predicted, strict=True)
    _write_csv(
        path,
        ["clip_id", "actual", "predicted"],
        ([clip_id, classes[target], classes[answer]] for clip_id, target, answer in rows),
    )


def write_class_table(path: Path, predictions: Predictions, *, classes: Sequence[str]) -> None:
    """CSV: a row a class, with columns class, num_clips, precision, recall, f1."""
    scores = [asdict(score) for score in class_scores(predictions.outputs, predictions.targets)]
    _write_csv(
        path,
        ["class", *scores[0]],
        ([name, *score.values()] for name, score in zip(classes, scores, strict=True)),
    )


def _write_csv(path: Path, header: list[str], rows: Iterable[list[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())
