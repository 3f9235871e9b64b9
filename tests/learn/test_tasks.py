import math

import numpy as np
import pytest
import torch

from pipeline.errors import ManifestError
from pipeline.learn.metrics import UNLABELLED
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks import TASK_CLASSES, Classification, FrameLabels, Predictions, Regression
from pipeline.manifest import Clip, FrameLabel
from pipeline.settings.tasks import TaskConfig
from tests.support.toy import make_clip

CONFIG = TaskConfig()
BALANCED = TaskConfig(class_weights="balanced")


def batch_of(clips: list[Clip], frame_seconds: list[list[float]] | None = None) -> Batch:
    """Samples of these clips, whose frames are shown at these times."""
    frame_seconds = frame_seconds or [[0.0]] * len(clips)
    lengths = [len(row) for row in frame_seconds]
    seconds = torch.full((len(clips), max(lengths)), torch.nan, dtype=torch.float64)
    for row, times in zip(seconds, frame_seconds, strict=True):
        row[: len(times)] = torch.tensor(times)
    maps = torch.zeros(*seconds.shape, 1, 1, 1)
    return Batch(tuple(clips), maps, torch.tensor(lengths), seconds, (0,) * len(clips))


def labelled(*labels: str) -> list[Clip]:
    return [make_clip(f"c{i}", label=label) for i, label in enumerate(labels)]


def test_classes_are_the_train_labels_sorted_and_targets_their_numbers():
    clips = labelled("up", "down", "left", "up")
    task = Classification.from_clips(clips, CONFIG)
    assert task == Classification(("down", "left", "up"))
    assert task.num_outputs == 3
    assert task.targets(batch_of(clips)).tolist() == [2, 0, 1, 2]


def test_a_single_class_is_refused():
    with pytest.raises(ManifestError, match="only the label 'up'"):
        Classification.from_clips(labelled("up", "up"), CONFIG)


def test_the_loss_is_cross_entropy_averaged_over_clips():
    task = Classification(("a", "b"))
    outputs, targets = torch.tensor([[1.0, 3.0], [0.5, 0.0]]), torch.tensor([0, 0])
    by_hand = [math.log(math.exp(1) + math.exp(3)) - 1, math.log(math.exp(0.5) + 1) - 0.5]
    assert task.loss(outputs, targets).item() == pytest.approx(sum(by_hand) / 2)
    metrics = task.metrics(outputs, targets)
    assert metrics["loss"] == pytest.approx(sum(by_hand) / 2)
    assert metrics["accuracy"] == 0.5


def test_balanced_weights_make_each_class_count_the_same():
    task = Classification.from_clips(labelled("a", "a", "a", "b"), BALANCED)
    assert task.class_weights == pytest.approx((4 / (2 * 3), 4 / (2 * 1)))
    outputs, targets = torch.randn(4, 2), torch.tensor([0, 0, 0, 1])
    weights = torch.tensor(task.class_weights)
    expected = torch.nn.functional.cross_entropy(outputs, targets, weights)
    torch.testing.assert_close(task.loss(outputs, targets), expected)
    losses = torch.nn.functional.cross_entropy(outputs, targets, reduction="none")
    torch.testing.assert_close(expected, (losses[:3].mean() + losses[3]) / 2)
    assert task.metrics(outputs, targets)["loss"] == pytest.approx(expected.item())


def intervals(*items: tuple[float, float, str]) -> tuple[FrameLabel, ...]:
    return tuple(FrameLabel(*item) for item in items)


def test_frames_get_the_label_of_the_interval_at_their_time_and_not_at_their_index():
    clips = [
        make_clip("a", frame_labels=intervals((0.0, 0.4, "left"), (0.4, 1.0, "up"))),
        make_clip("b", frame_labels=intervals((10.5, 11.0, "down"))),
    ]
    task = FrameLabels.from_clips(clips, CONFIG)
    assert task.classes == ("down", "left", "up")
    times = [[0.0, 0.39, 0.4, 0.99, 1.0], [10.0, 10.5, 11.0]]  # variable rates, a clip that starts late
    none = UNLABELLED
    assert task.targets(batch_of(clips, times)).tolist() == [[1, 1, 2, 2, none], [none, 0, none, none, none]]


def test_frames_without_a_label_change_neither_loss_nor_gradient_nor_metrics():
    task = FrameLabels(("a", "b", "c"), class_weights=(1.0, 2.0, 0.5))
    torch.manual_seed(0)
    outputs = torch.randn(2, 4, 3, requires_grad=True)
    targets = torch.tensor([[0, 1, UNLABELLED, UNLABELLED], [UNLABELLED, 2, 2, UNLABELLED]])
    loss = task.loss(outputs, targets)
    loss.backward()
    rows = [outputs[0, 0], outputs[0, 1], outputs[1, 1], outputs[1, 2]]
    numbers, weights = [0, 1, 2, 2], [1.0, 2.0, 0.5, 0.5]
    by_hand = [-w * row.log_softmax(0)[n] for row, n, w in zip(rows, numbers, weights, strict=True)]
    torch.testing.assert_close(loss, sum(by_hand) / sum(weights))
    assert not outputs.grad[targets == UNLABELLED].any()
    flat = (outputs.detach().flatten(0, 1), targets.flatten())
    metrics = task.metrics(*flat)
    assert metrics["loss"] == pytest.approx(loss.item())
    hits = [row.argmax().item() == number for row, number in zip(rows, numbers, strict=True)]
    assert metrics["accuracy"] == sum(hits) / 4


def test_a_batch_without_any_label_has_no_loss():
    outputs = torch.randn(1, 2, 2, requires_grad=True)
    loss = FrameLabels(("a", "b")).loss(outputs, torch.full((1, 2), UNLABELLED))
    loss.backward()
    assert loss.item() == 0
    assert not outputs.grad.any()


def test_frame_labels_weigh_by_their_seconds():
    clips = [make_clip("a", frame_labels=intervals((0, 3, "x"), (3, 4, "y")))]
    assert FrameLabels.from_clips(clips, BALANCED).class_weights == pytest.approx((2 / 3, 2.0))


def test_labels_outside_of_the_clip_are_not_the_clips():
    labels = intervals((0, 3, "x"), (3, 9, "y"), (9, 10, "z"))  # of the whole video
    clips = [make_clip("a", frame_labels=labels, start_seconds=2.0, end_seconds=4.0)]
    task = FrameLabels.from_clips(clips, BALANCED)
    assert task == FrameLabels(("x", "y"), pytest.approx((1.0, 1.0)))
    with pytest.raises(ManifestError, match="Clip 'b' has no frame_labels"):
        task.check([make_clip("b", frame_labels=labels, start_seconds=11.0)])


def test_a_clip_of_one_frame_has_an_interval_too():
    (row,) = FrameLabels(("a", "b")).render(torch.tensor([[0.0, 1.0]]), torch.tensor([0.5]))
    assert (row["start_seconds"], row["end_seconds"], row["label"]) == (0.5, 1.5, "b")


def test_values_that_are_all_the_same_are_not_divided_by_what_rounding_left():
    clips = [make_clip(f"c{i}", values=(0.1, float(i))) for i in range(3)]
    assert Regression.from_clips(clips, CONFIG).std[0] == 1.0


def test_the_clips_with_too_few_values_are_the_ones_that_are_named():
    clips = [make_clip("a", values=()), make_clip("b", values=(1.0, 2.0))]
    with pytest.raises(ManifestError, match=r"^Clip 'a' has no value") as caught:
        Regression.from_clips(clips, CONFIG)
    assert "'b'" not in str(caught.value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_value_that_is_no_finite_number_is_refused_by_clip(value):
    clips = [make_clip("c0", values=(1.0, 2.0)), make_clip("c1", values=(1.0, value))]
    with pytest.raises(ManifestError, match=rf"Clip 'c1' has value 1.0\|{value}: each must be finite\."):
        Regression.from_clips(clips, CONFIG)


def test_values_are_standardised_by_the_train_split_and_reported_in_their_unit():
    clips = [make_clip(f"c{i}", values=values) for i, values in enumerate([(1.0, 50.0), (3.0, 50.0)])]
    task = Regression.from_clips(clips, CONFIG)
    assert task == Regression(mean=(2.0, 50.0), std=(1.0, 1.0))
    others = [make_clip("v", values=(4.0, 51.0)), make_clip("w", values=(0.0, 49.0))]
    targets = task.targets(batch_of(others))
    assert targets.dtype == torch.float32
    assert targets.tolist() == [[2.0, 1.0], [-2.0, -1.0]]
    outputs = targets + torch.tensor([[0.5, 0.0], [0.0, -2.0]])
    metrics = Regression(mean=(2.0, 50.0), std=(10.0, 1.0)).metrics(outputs, targets)
    assert metrics["loss"] == pytest.approx((0.25 + 4) / 4)
    assert (metrics["mae_1"], metrics["mae_2"]) == pytest.approx((2.5, 1.0))
    assert metrics["rmse_2"] == pytest.approx(2**0.5)


@pytest.mark.parametrize(
    "task",
    [
        Classification(("a", "b")),
        Classification(("a", "b"), (0.5, 1.5)),
        FrameLabels(("a", "b")),
        Regression((0.5,), (2.0,)),
    ],
    ids=repr,
)
def test_a_task_is_restored_from_its_description(task):
    name = next(name for name, kind in TASK_CLASSES.items() if kind is type(task))
    assert TASK_CLASSES[name].from_description(task.describe()) == task


@pytest.mark.parametrize("kind", [Classification, FrameLabels, Regression])
def test_what_may_choose_the_best_epoch_is_measured(kind):
    clips = [
        make_clip(clip_id, label=label, values=(value,), frame_labels=intervals((0, 1, label)))
        for clip_id, label, value in (("a", "x", 1.0), ("b", "y", 2.0), ("c", "x", 3.0))
    ]
    task = kind.from_clips(clips, CONFIG)
    shape = (2, task.num_outputs) if task.facts.per_frame else (task.num_outputs,)
    predictions = Predictions(
        clips=tuple(clips),
        outputs=tuple(torch.randn(3, *shape)),
        targets=tuple(task.targets(batch_of(clips, [[0.0, 1.0]] * 3))),
        frame_seconds=(torch.tensor([0.0, 1.0]),) * 3,
    )
    measured = task.measure(predictions)(np.ones(3))
    assert set(task.facts.monitors) <= set(measured)
    assert all(math.isfinite(value) for value in measured.values())
