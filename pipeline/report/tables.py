"""Tables of training and evaluation: CSV files that DVC draws, and all answers as Parquet."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.learn.answers import label_marks
from pipeline.learn.member import Metrics
from pipeline.learn.metrics import class_scores, json_numbers
from pipeline.settings.tasks import TASKS
from pipeline.system.files import write_atomically


def write_curves(folder: Path, history: Sequence[Metrics]) -> None:
    """A CSV a metric, with columns epoch, train, val; empty where a split has no such number."""
    finite = [{split: json_numbers(values) for split, values in metrics.items()} for metrics in history]
    for name in {name: None for metrics in history[-1].values() for name in metrics}:
        rows = (
            [epoch, *(metrics[split].get(name) for split in ("train", "val"))]
            for epoch, metrics in enumerate(finite)
        )
        write_csv(folder / f"{name}.csv", ["epoch", "train", "val"], rows)


def write_predictions(path: Path, predictions: pa.Table) -> None:
    """Write `Evaluation.predictions` as Parquet; equal tables have equal bytes."""
    data = pa.BufferOutputStream()
    pq.write_table(predictions, data)
    write_atomically(path, data.getvalue())


def write_tables(folder: Path, predictions: pa.Table) -> None:
    """Write what DVC draws of the recurrent model's answers, from `Evaluation.predictions`.

    confusion.csv, of one class at a time, has columns clip_id, actual, predicted; values.csv also `value`.
    Both are empty for another task: DVC misses a plot's file that is not there. A task with classes has
    classes.csv, too: a row a class, with num_rows (clips or frames), precision, recall, f1.
    """
    metadata = predictions.schema.metadata
    facts = TASKS[metadata[b"task"].decode()]
    is_confusion = facts.has_classes and not facts.is_multilabel
    answers = predictions.filter(pc.field("model") == "recurrent").rename_columns(
        {"truth": "actual", "answer": "predicted"}
    )
    columns = ["clip_id", "actual", "predicted"]
    write_csv(folder / "confusion.csv", columns, _rows(answers, columns) if is_confusion else ())
    columns = ["clip_id", "value", "actual", "predicted"]
    has_values = "value" in answers.column_names
    write_csv(folder / "values.csv", columns, _rows(answers, columns) if has_values else ())
    if facts.has_classes:
        _write_classes(folder / "classes.csv", answers, classes=json.loads(metadata[b"classes"]))


def _write_classes(path: Path, answers: pa.Table, *, classes: list[str]) -> None:
    predicted, actual = (label_marks(answers[name], classes) for name in ("predicted", "actual"))
    scores = [asdict(score) for score in class_scores(predicted, actual)]
    rows = ([name, *score.values()] for name, score in zip(classes, scores, strict=True))
    write_csv(path, ["class", *scores[0]], rows)


def _rows(table: pa.Table, columns: list[str]) -> Iterable[Sequence[object]]:
    return zip(*(table[name].to_pylist() for name in columns), strict=True)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a header and rows; None is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Text with the cells of each column below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
