import csv

import torch

from pipeline.evaluation import Predictions
from pipeline.plots import write_class_table, write_confusion

PREDICTIONS = Predictions(
    clip_ids=("a", "b", "c"),
    outputs=torch.tensor([[2.0, 1.0], [2.0, 1.0], [0.0, 1.0]]),
    targets=torch.tensor([0, 1, 1]),
)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_confusion_has_a_row_a_clip(tmp_path):
    write_confusion(tmp_path / "confusion.csv", PREDICTIONS, classes=["left", "up, then left"])
    assert read_csv(tmp_path / "confusion.csv") == [
        {"clip_id": "a", "actual": "left", "predicted": "left"},
        {"clip_id": "b", "actual": "up, then left", "predicted": "left"},
        {"clip_id": "c", "actual": "up, then left", "predicted": "up, then left"},
    ]


def test_the_class_table_has_a_row_a_class(tmp_path):
    write_class_table(tmp_path / "classes.csv", PREDICTIONS, classes=["left", "up"])
    rows = read_csv(tmp_path / "classes.csv")
    assert [(row["class"], row["num_clips"]) for row in rows] == [("left", "1"), ("up", "2")]
    numbers = [[float(row[name]) for name in ("precision", "recall", "f1")] for row in rows]
    assert numbers == [[0.5, 1.0, 2 / 3], [1.0, 0.5, 2 / 3]]
