import csv
import math
from dataclasses import replace

import torch

from pipeline.learn.evaluation import prediction_table
from pipeline.learn.metrics import UNLABELLED
from pipeline.learn.tasks import Classification, FrameLabels, Predictions, Regression, Task
from pipeline.report.tables import write_curves, write_tables
from tests.support.toy import make_clip

TASK = Classification(("left", "up, then left"))


def make_predictions(outputs: list[list], targets: list) -> Predictions:
    return Predictions(
        clips=tuple(make_clip(name) for name, _ in zip("abc", outputs, strict=False)),
        outputs=tuple(map(torch.tensor, outputs)),
        targets=tuple(map(torch.tensor, targets)),
        frame_seconds=tuple(torch.arange(len(target)).double() for target in targets)
        if isinstance(targets[0], list)
        else (),
    )


PREDICTIONS = make_predictions([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]], [0, 1, 1])


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(folder, predictions: Predictions, *, task: Task) -> None:
    """The tables of a model, and not those of its shuffled control."""
    wrong = replace(predictions, outputs=tuple(-output for output in predictions.outputs))
    answers = {"recurrent": predictions, "shuffled": wrong}
    write_tables(folder, prediction_table(answers, task=task))


def test_confusion_has_a_row_a_clip(tmp_path):
    write(tmp_path, PREDICTIONS, task=TASK)
    assert read_csv(tmp_path / "confusion.csv") == [
        {"clip_id": "a", "actual": "left", "predicted": "left"},
        {"clip_id": "b", "actual": "up, then left", "predicted": "left"},
        {"clip_id": "c", "actual": "up, then left", "predicted": "up, then left"},
    ]


def test_the_class_table_has_a_row_a_class(tmp_path):
    write(tmp_path, PREDICTIONS, task=TASK)
    rows = read_csv(tmp_path / "classes.csv")
    assert [(row["class"], row["num_rows"]) for row in rows] == [("left", "1"), ("up, then left", "2")]
    numbers = [[float(row[name]) for name in ("precision", "recall", "f1")] for row in rows]
    assert numbers == [[0.5, 1.0, 2 / 3], [1.0, 0.5, 2 / 3]]


def test_confusion_of_frames_has_a_row_a_labelled_frame(tmp_path):
    predictions = make_predictions([[[2.0, 1.0], [0.0, 1.0]], [[2.0, 1.0]]], [[UNLABELLED, 1], [1]])
    write(tmp_path, predictions, task=FrameLabels(("left", "up")))
    assert read_csv(tmp_path / "confusion.csv") == [
        {"clip_id": "a", "actual": "up", "predicted": "up"},
        {"clip_id": "b", "actual": "up", "predicted": "left"},
    ]
    assert [row["num_rows"] for row in read_csv(tmp_path / "classes.csv")] == ["0", "2"]


def test_a_table_that_a_task_does_not_have_is_empty_so_that_dvc_misses_nothing(tmp_path):
    write(tmp_path, PREDICTIONS, task=TASK)
    assert (tmp_path / "values.csv").read_text() == "clip_id,value,actual,predicted\n"


def test_tables_of_frames_without_any_label_are_empty(tmp_path):
    predictions = make_predictions([[[2.0, 1.0]]], [[UNLABELLED]])
    write(tmp_path, predictions, task=FrameLabels(("left", "up")))
    assert read_csv(tmp_path / "confusion.csv") == []
    assert [row["num_rows"] for row in read_csv(tmp_path / "classes.csv")] == ["0", "0"]


def test_values_are_in_the_manifests_unit(tmp_path):
    predictions = make_predictions([[0.0, 1.0]], [[-1.0, 0.5]])
    predictions = replace(predictions, clips=(make_clip("a", values=(8.0, 2.0)),))
    write(tmp_path, predictions, task=Regression(mean=(10.0, 0.0), std=(2.0, 4.0)))
    assert read_csv(tmp_path / "values.csv") == [
        {"clip_id": "a", "value": "1", "actual": "8.0", "predicted": "10.0"},
        {"clip_id": "a", "value": "2", "actual": "2.0", "predicted": "4.0"},
    ]


def test_a_curve_has_a_row_an_epoch_and_nothing_where_a_number_is_missing_or_undefined(tmp_path):
    history = [
        {"train": {"loss": 2.0}, "val": {"loss": 1.5, "accuracy": math.nan}},
        {"train": {"loss": 1.0}, "val": {"loss": 1.25, "accuracy": 0.5}},
    ]
    write_curves(tmp_path, history)
    assert (tmp_path / "loss.csv").read_text() == "epoch,train,val\n0,2.0,1.5\n1,1.0,1.25\n"
    assert (tmp_path / "accuracy.csv").read_text() == "epoch,train,val\n0,,\n1,,0.5\n"
