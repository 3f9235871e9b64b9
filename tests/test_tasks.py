import math

import pytest
import torch

from pipeline.errors import ManifestError
from pipeline.tasks import Classification
from tests.toy import make_clip


def test_classes_are_the_train_labels_sorted_and_targets_their_numbers():
    clips = [make_clip(f"c{i}", label=label) for i, label in enumerate(["up", "down", "left", "up"])]
    task = Classification.from_clips(clips)
    assert task.classes == ("down", "left", "up")
    assert task.num_outputs == 3
    assert task.targets(clips).tolist() == [2, 0, 1, 2]


def test_a_missing_label_names_clip_and_column():
    with pytest.raises(ManifestError, match=r"'b' has no label: .* column 'label'"):
        Classification.from_clips([make_clip("a", label="up"), make_clip("b")])


def test_a_label_that_train_does_not_have_is_refused():
    task = Classification(("down", "up"))
    with pytest.raises(ManifestError, match=r"'v' has label 'left', .* Known: down, up"):
        task.targets([make_clip("v", label="left")])


def test_a_single_class_is_refused():
    with pytest.raises(ManifestError, match="only the label 'up'"):
        Classification.from_clips([make_clip("a", label="up")])


def test_the_loss_is_cross_entropy_averaged_over_clips():
    task = Classification(("a", "b"))
    outputs, targets = torch.tensor([[1.0, 3.0], [0.5, 0.0]]), torch.tensor([0, 0])
    by_hand = [math.log(math.exp(1) + math.exp(3)) - 1, math.log(math.exp(0.5) + 1) - 0.5]
    assert task.loss(outputs, targets).item() == pytest.approx(sum(by_hand) / 2)
    metrics = task.metrics(outputs, targets)
    assert metrics["loss"] == pytest.approx(sum(by_hand) / 2)
    assert metrics["accuracy"] == 0.5


def test_the_loss_decides_between_equal_accuracies():
    task = Classification(("a", "b"))
    assert task.score({"accuracy": 0.9, "loss": 5.0}) > task.score({"accuracy": 0.8, "loss": 0.1})
    assert task.score({"accuracy": 0.9, "loss": 0.1}) > task.score({"accuracy": 0.9, "loss": 0.2})
