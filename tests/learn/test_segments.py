"""Temporal segmentation: metrics by hand and against the definition, the smoothing loss, short segments."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.errors import ConfigError
from pipeline.learn.checkpoint import Checkpoint
from pipeline.learn.comparison import as_asked
from pipeline.learn.metrics import UNLABELLED, edit_distance, measure_segments
from pipeline.learn.tasks import Classification, FrameLabels, Predictions
from pipeline.learn.tasks.segments import frame_edges, merge_short_segments, smoothing_loss
from pipeline.manifest import FrameLabel
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.tasks import SegmentsConfig, TaskConfig
from pipeline.settings.training import TrainConfig
from tests.support.features import make_contract
from tests.support.toy import make_clip


def numbers(text: str) -> np.ndarray:
    """A class number a letter; `.` is no label."""
    return np.array([UNLABELLED if letter == "." else ord(letter) - ord("A") for letter in text])


def measured(pairs: list[tuple[str, str]], counts: list[int] | None = None, background: str = "") -> dict:
    """The metrics of clips, each a pair of answer and truth."""
    answers, truths = (
        np.concatenate([numbers(text) for text in texts]) for texts in zip(*pairs, strict=True)
    )
    clips = np.repeat(np.arange(len(pairs)), [len(truth) for _, truth in pairs])
    measure = measure_segments(
        answers, truths, clips=clips, num_clips=len(pairs), background=numbers(background).tolist()
    )
    return measure(np.ones(len(pairs)) if counts is None else np.array(counts))


def metrics(edit: float, at_10: float, at_25: float, at_50: float) -> dict:
    return {"edit": edit, "f1_10": at_10, "f1_25": at_25, "f1_50": at_50}


BY_HAND = [
    # IoU 2/4, 3/6, none (the other A is elsewhere), 2/2; ABAC against ABC.
    (("AABBBBBACC", "AAAABBBBCC"), metrics(3 / 4, 6 / 7, 6 / 7, 6 / 7)),
    # IoU 2/8, none, 4/8, 2/2: the first A takes the true one, unless its IoU is too low. ABAB against AB.
    (("AABBAAAABB", "AAAAAAAABB"), metrics(2 / 4, 4 / 6, 4 / 6, 4 / 6)),
    # The second A overlaps the first true A most (3/8), which is taken, and so misses the second (1/5).
    (("AACAAAAA", "AAAAAABA"), metrics(2 / 3, 2 / 6, 2 / 6, 0)),
    # Frames without a label are taken out first.
    (("AABBAB", "AA..AB"), metrics(1, 1, 1, 1)),
]


@pytest.mark.parametrize(("pair", "expected"), BY_HAND)
def test_metrics_are_those_by_hand(pair, expected):
    assert measured([pair]) == pytest.approx(expected)


def test_edit_is_a_mean_over_clips_and_f1_counts_the_segments_of_all():
    pairs = [pair for pair, _ in BY_HAND[:2]]
    assert measured(pairs) == pytest.approx(metrics((3 / 4 + 2 / 4) / 2, 10 / 13, 10 / 13, 10 / 13))
    assert measured(pairs, [0, 2]) == pytest.approx(BY_HAND[1][1])
    assert measured(pairs, [1, 2])["f1_10"] == pytest.approx((6 + 2 * 4) / (7 + 2 * 6))
    # Equal labels on both sides of a border between clips are two segments.
    assert measured([("AB", "AB"), ("BA", "BA")]) == metrics(1, 1, 1, 1)


def test_background_counts_neither_in_truth_nor_in_answers():
    pair = ("AAAACCAC", "CCAACAAC")
    assert measured([pair], background="C") == pytest.approx(metrics(1, 1, 1, 1))
    assert measured([pair]) == pytest.approx(metrics(4 / 5, 8 / 9, 8 / 9, 8 / 9))
    assert measured([("CC", "CC")], background="C") == pytest.approx(
        metrics(1, math.nan, math.nan, math.nan), nan_ok=True
    )
    assert measured([("AC", "CC")], background="C") == metrics(0, 0, 0, 0)


def test_a_clip_without_labels_does_not_count():
    assert measured([("AB", ".."), ("AB", "AB")]) == metrics(1, 1, 1, 1)
    assert np.isnan(list(measured([("AB", ".."), ("AB", "AB")], [2, 0]).values())).all()


def segments_of(text: str, background: str) -> list[tuple[str, set[int]]]:
    """The label and the frames of each segment."""
    found: list[tuple[str, set[int]]] = []
    for place, letter in enumerate(text):
        if place and text[place - 1] == letter:
            found[-1][1].add(place)
        else:
            found.append((letter, {place}))
    return [each for each in found if each[0] not in background]


def by_definition(pairs: list[tuple[str, str]], background: str) -> dict:
    """As Lea et al. define it, in loops; true positives, and segments of both, are summed over clips."""
    edits = []
    hits, total = dict.fromkeys((0.1, 0.25, 0.5), 0), 0
    for answer, truth in pairs:
        ours, theirs = segments_of(answer, background), segments_of(truth, background)
        total += len(ours) + len(theirs)
        one, other = "".join(label for label, _ in ours), "".join(label for label, _ in theirs)
        edits.append(1 - levenshtein(one, other) / max(len(one), len(other)) if one or other else 1.0)
        for overlap in hits:
            used = set()
            for label, frames in ours:
                iou = [len(frames & g) / len(frames | g) * (label == true) for true, g in theirs]
                best = int(np.argmax(iou)) if iou else -1
                if iou and iou[best] >= overlap and best not in used:
                    used.add(best)
            hits[overlap] += len(used)
    return metrics(
        float(np.mean(edits)), *(2 * found / total if total else math.nan for found in hits.values())
    )


@cache
def levenshtein(one: str, other: str) -> int:
    if not one or not other:
        return len(one) + len(other)
    return min(
        levenshtein(one[1:], other) + 1,
        levenshtein(one, other[1:]) + 1,
        levenshtein(one[1:], other[1:]) + (one[0] != other[0]),
    )


CLIPS = st.integers(1, 14).flatmap(
    lambda size: st.tuples(*[st.text("ABC", min_size=size, max_size=size)] * 2)
)


@settings(deadline=None)
@given(st.lists(CLIPS, min_size=1, max_size=4), st.sampled_from(["", "A", "BC"]))
def test_metrics_are_those_of_the_definition(pairs, background):
    assert measured(pairs, background=background) == pytest.approx(
        by_definition(pairs, background), nan_ok=True
    )


def test_the_edit_distance_is_levenshteins():
    assert edit_distance(numbers("KITTEN"), numbers("SITTING")) == 3
    assert edit_distance(numbers(""), numbers("ABC")) == edit_distance(numbers("ABC"), numbers("")) == 3


def test_the_smoothing_loss_truncates_changes_and_only_the_later_frame_has_a_gradient():
    shares = [[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]
    logits = torch.tensor([shares, shares]).log().requires_grad_()
    targets = torch.tensor([[0, 1, UNLABELLED], [UNLABELLED, 0, UNLABELLED]])
    loss = smoothing_loss(logits, targets, limit=1.0)
    assert loss.item() == pytest.approx((math.log(0.9 / 0.5) ** 2 + 1) / 2)  # |log(0.1 / 0.5)| is above 1
    loss.backward()
    assert logits.grad[0, 1].any()
    assert not logits.grad[0, [0, 2]].any()
    assert not logits.grad[1].any()
    assert smoothing_loss(logits, torch.full((2, 3), UNLABELLED), limit=1.0).item() == 0


def test_the_loss_has_the_smoothing_loss_with_its_weight_and_the_metric_has_not():
    plain = FrameLabels(("a", "b"))
    smooth = FrameLabels(("a", "b"), segments=SegmentsConfig(smoothing=0.5, smoothing_limit=2.0))
    outputs, targets = torch.randn(2, 4, 2), torch.tensor([[0, 1, 1, UNLABELLED], [1, 1, 0, 0]])
    added = 0.5 * smoothing_loss(outputs, targets, limit=2.0)
    torch.testing.assert_close(smooth.loss(outputs, targets), plain.loss(outputs, targets) + added)
    rows = outputs.flatten(0, 1), targets.flatten()
    assert smooth.metrics(*rows) == plain.metrics(*rows)


@pytest.mark.parametrize(
    ("labels", "min_seconds", "expected"),
    [
        ("AAABAACC", 0.2, "AAAAAACC"),
        ("AAABAACC", 0.1, "AAABAACC"),  # not shorter
        ("AABCC", 0.2, "AAACC"),  # neighbours of equal length: the earlier one
        ("AABCCC", 0.2, "AACCCC"),  # the longer one
        ("ABCCC", 0.2, "BBCCC"),  # the first of equally short ones
        ("ABABAB", 0.2, "BBBBBB"),
        ("AB", 9.0, "BB"),
        ("A", 9.0, "A"),
    ],
)
def test_segments_that_are_too_short_join_the_longer_neighbour(labels, min_seconds, expected):
    edges = frame_edges(torch.arange(len(labels), dtype=torch.float64) / 10)
    found = merge_short_segments(numbers(labels), edges, min_seconds=min_seconds)
    assert "".join(chr(ord("A") + number) for number in found) == expected


def test_a_segments_duration_is_that_of_its_frames_and_not_their_number():
    seconds = torch.tensor([0.0, 1.0, 2.0, 2.1, 2.2, 2.3, 3.0])
    edges = frame_edges(seconds)
    assert edges.tolist() == pytest.approx([0, 1, 2, 2.1, 2.2, 2.3, 3, 3.5])
    found = merge_short_segments(numbers("AABBBCC"), edges, min_seconds=0.5)
    assert found.tolist() == numbers("AAAAACC").tolist()


def frame_predictions(task: FrameLabels, answer: str, truth: str) -> Predictions:
    """A clip with ten frames a second, whose answers have probabilities near 1."""
    logits = 9.0 * torch.nn.functional.one_hot(torch.from_numpy(numbers(answer)), task.num_outputs)
    seconds = torch.arange(len(answer), dtype=torch.float64) / 10
    return Predictions((make_clip("a"),), (logits,), (torch.from_numpy(numbers(truth)),), (seconds,))


def test_answers_without_short_segments_are_those_that_are_measured_written_and_shown():
    task = FrameLabels(("A", "B", "C"), segments=SegmentsConfig(min_seconds=0.2))
    predictions = frame_predictions(task, "AABAACC", "AAAAACC")
    metrics = task.measure(predictions)(np.ones(1))
    assert (metrics["accuracy"], metrics["macro_f1"], metrics["edit"], metrics["f1_50"]) == (1, 1, 1, 1)
    assert task.tabulate(predictions)["answer"].to_pylist() == list("AAAAACC")
    output, seconds = predictions.outputs[0], predictions.frame_seconds[0]
    rows = task.render(output, seconds)
    assert [(row["start_seconds"], row["end_seconds"], row["label"]) for row in rows] == [
        (0.0, 0.5, "A"),
        (0.5, pytest.approx(0.7), "C"),
    ]
    frames = task.render_frames(output, seconds)
    assert [row["label"] for row in frames] == list("AAAAACC")
    assert [row["frame_seconds"] for row in frames] == seconds.tolist()
    sure = output.softmax(dim=1).max().item()
    assert frames[0]["probability"] == pytest.approx(sure)
    assert frames[2]["probability"] == pytest.approx((1 - sure) / 2, rel=1e-3)  # of the label that it got
    assert rows[0]["probability"] == pytest.approx((4 * sure + (1 - sure) / 2) / 5)
    plain = FrameLabels(task.classes)
    assert plain.measure(predictions)(np.ones(1))["accuracy"] == pytest.approx(6 / 7)
    assert plain.measure_monitor(predictions, "edit")(np.ones(1))["edit"] == pytest.approx(2 / 4)


def test_background_is_named_by_labels_of_the_train_split():
    clips = [make_clip("a", frame_labels=(FrameLabel(0, 1, "none"), FrameLabel(1, 2, "cut")))]
    task = FrameLabels.from_clips(clips, TaskConfig(segments=SegmentsConfig(background=("none",))))
    assert FrameLabels.from_description(task.describe()) == task
    assert task.measure(frame_predictions(task, "BAB", "BBA"))(np.ones(1))["edit"] == 1
    with pytest.raises(ConfigError, match=r"background has other, which no clip .* Labels: cut, none\."):
        FrameLabels.from_clips(clips, TaskConfig(segments=SegmentsConfig(background=("none", "other"))))


def test_a_task_about_clips_has_no_answer_for_each_frame():
    with pytest.raises(ConfigError, match="task is classification: it has no answer for each frame"):
        Classification(("a", "b")).render_frames(torch.zeros(2), torch.zeros(3))


def test_an_evaluation_may_clean_answers_otherwise_than_training() -> None:
    task, config = FrameLabels(("A", "B", "C"), segments=SegmentsConfig(background=("C",))), TrainConfig()
    trained = Checkpoint("recurrent", nn.Identity(), task, config, (make_contract(),), ((1, 1, 1),), {}, "")
    assert as_asked(trained, EvaluateConfig()) is trained
    cleaned = as_asked(trained, EvaluateConfig(min_seconds=0.2)).task
    assert cleaned == replace(task, segments=SegmentsConfig(background=("C",), min_seconds=0.2))
    assert as_asked(replace(trained, task=cleaned), EvaluateConfig(min_seconds=0)).task == task
