"""Several labels a clip or a frame, and classes of unequal size."""

import itertools
import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.errors import ManifestError
from pipeline.learn.answering import _Answer, _merge
from pipeline.learn.evaluation import prediction_table
from pipeline.learn.metrics import UNLABELLED, best_thresholds, measure_classes, measure_labels
from pipeline.learn.streaming import make_loader
from pipeline.learn.streaming.samples import Sample, draw_equally
from pipeline.learn.tasks import TASK_CLASSES, Classification, FrameLabels, FrameMultilabel, Multilabel
from pipeline.learn.tasks.task import Predictions
from pipeline.manifest import Clip
from pipeline.settings.tasks import TaskConfig
from pipeline.settings.training import LoaderConfig
from tests.learn.test_tasks import BALANCED, CONFIG, batch_of, intervals, labelled
from tests.support.toy import make_clip, make_features, random_maps

EFFECTIVE = TaskConfig(class_weights="effective_number", effective_number_beta=0.9)
OVERLAP = intervals((0.0, 0.5, "walk"), (0.2, 1.0, "talk"))


def charades_map(scores: np.ndarray, positive: np.ndarray) -> float:
    """As Charades' script: over classes, the mean over right rows of the precision up to there."""
    found = []
    for column, right in zip(scores.T, positive.T, strict=True):
        ranked = right[np.argsort(-column, kind="stable")]
        precisions = [ranked[: place + 1].mean() for place in range(len(ranked)) if ranked[place]]
        if precisions:
            found.append(sum(precisions) / len(precisions))
    return sum(found) / len(found)


def some_rows(num_rows: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and right labels (M, K); the last class is right nowhere."""
    rng = np.random.default_rng(seed)
    positive = rng.random((num_rows, num_classes)) < 0.3
    positive[:, -1] = False
    return rng.random((num_rows, num_classes)) * 0.6 + positive * 0.3, positive


def test_map_is_that_of_charades_and_of_audioset():
    from sklearn.metrics import average_precision_score

    probabilities, positive = some_rows(60, 5)
    measure = measure_labels(probabilities, positive, thresholds=[0.5] * 5, clips=np.arange(60))
    metrics = measure(np.ones(60))
    assert metrics["mAP"] == pytest.approx(charades_map(probabilities, positive))
    # AudioSet: scikit-learn's average precision of each class, and their mean.
    by_class = [average_precision_score(positive[:, k], probabilities[:, k]) for k in range(4)]
    assert metrics["mAP"] == pytest.approx(np.mean(by_class))
    tied = probabilities.round(1)
    by_class = [average_precision_score(positive[:, k], tied[:, k]) for k in range(4)]
    measure = measure_labels(tied, positive, thresholds=[0.5] * 5, clips=np.arange(60))
    assert measure(np.ones(60))["mAP"] == pytest.approx(np.mean(by_class))


def test_localisation_is_measured_at_25_equally_spaced_frames_of_each_clip():
    lengths = [25, 50, 60, 7]
    clips = np.repeat(range(4), lengths)
    probabilities, positive = some_rows(len(clips), 3)
    rows = [
        int(np.flatnonzero(clips == clip)[math.floor(point / 25 * length)])
        for clip, length in enumerate(lengths)
        for point in range(25)
    ]
    measure = measure_labels(probabilities, positive, thresholds=[0.5] * 3, clips=clips, per_frame=True)
    from sklearn.metrics import average_precision_score  # frames of the shortest clip are tied

    by_class = [average_precision_score(positive[rows, k], probabilities[rows, k]) for k in range(2)]
    assert measure(np.ones(4))["mAP_25"] == pytest.approx(np.mean(by_class))
    assert measure(np.ones(4))["mAP"] == pytest.approx(charades_map(probabilities, positive))


def test_f1_of_several_labels_equals_that_of_scikit_learn_for_clips_that_count_several_times():
    from sklearn.metrics import average_precision_score, f1_score

    clips = np.repeat(range(12), 5)
    probabilities, positive = some_rows(60, 4)
    thresholds = [0.4, 0.5, 0.3, 0.95]  # the last is never said, and right nowhere
    counts = np.random.default_rng(0).integers(0, 3, 12)
    weights, said = counts[clips], probabilities >= thresholds
    measure = measure_labels(probabilities, positive, thresholds=thresholds, clips=clips)
    metrics = measure(counts)
    for average in ("micro", "macro"):
        expected = f1_score(positive[:, :3], said[:, :3], average=average, sample_weight=weights)
        assert metrics[f"{average}_f1"] == pytest.approx(expected)
    by_class = [
        average_precision_score(positive[:, k], probabilities[:, k], sample_weight=weights) for k in range(3)
    ]
    assert metrics["mAP"] == pytest.approx(np.mean(by_class))
    assert list(
        measure_labels(probabilities, positive, thresholds=thresholds, clips=clips, ranked=False)(counts)
    ) == [
        "micro_f1",
        "macro_f1",
    ]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12))
def test_a_threshold_has_the_highest_f1_of_all(rows):
    scores, true = np.array([score / 5 for score, _ in rows]), np.array([right for _, right in rows])

    def f1(threshold: float) -> float:
        said = scores >= threshold
        return 2 * (said & true).sum() / max(said.sum() + true.sum(), 1)

    (found,) = best_thresholds(scores[:, None], true[:, None])
    if true.any():
        best = max(map(f1, scores))
        assert f1(found) == pytest.approx(best)
        assert found == max(score for score in scores if f1(score) == pytest.approx(best))
    else:
        assert found == 0.5


def test_the_calibration_error_is_counted_in_15_bins_of_confidence():
    generator = torch.Generator().manual_seed(0)
    logits, targets = (
        torch.randn(300, 4, generator=generator) * 2,
        torch.randint(4, (300,), generator=generator),
    )
    error = 0.0
    for number in range(15):
        inside = [
            (confidence, int(answer == target))
            for (confidence, answer), target in zip(
                [(max(row), row.index(max(row))) for row in logits.double().softmax(1).tolist()],
                targets.tolist(),
                strict=True,
            )
            if number / 15 < confidence <= (number + 1) / 15
        ]
        if inside:
            confidences, hits = zip(*inside, strict=True)
            error += len(inside) / 300 * abs(np.mean(confidences) - np.mean(hits))
    metrics = measure_classes(logits, targets)(np.ones(300))
    assert metrics["ece"] == pytest.approx(error)
    assert metrics["ece"] > 0.1


def multilabel_clips() -> list[Clip]:
    return [
        make_clip("a", label="walk|talk"),
        make_clip("b", label="walk"),
        make_clip("c", label="talk | sing"),
        make_clip("d"),
    ]


def test_targets_of_several_labels_are_marks_and_a_clip_without_a_label_has_none():
    clips = multilabel_clips()
    task = Multilabel.from_clips(clips, CONFIG)
    assert task == Multilabel(("sing", "talk", "walk"))
    assert task.targets(batch_of(clips)).tolist() == [[0, 1, 1], [0, 0, 1], [1, 1, 0], [0, 0, 0]]


def test_frames_have_all_labels_of_their_time_and_outside_of_intervals_none():
    clips = [make_clip("a", frame_labels=OVERLAP), make_clip("b")]
    task = FrameMultilabel.from_clips(clips, CONFIG)
    targets = task.targets(batch_of(clips, [[0.0, 0.2, 0.5, 1.0], [0.3]]))
    gone = [UNLABELLED] * 2
    assert targets.tolist() == [[[0, 1], [1, 1], [1, 0], [0, 0]], [[0, 0], gone, gone, gone]]


def test_a_label_that_no_frame_of_the_clip_shows_is_no_class_of_it():
    labels = intervals((0.0, 1.0, "x"), (1.0, 2.0, "y"), (5.0, 6.0, "elsewhere"))
    clips = [make_clip("a", frame_labels=labels, end_seconds=2.0)]
    assert FrameLabels.from_clips(clips, CONFIG).targets(batch_of(clips, [[0.5, 1.5]])).tolist() == [[0, 1]]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weights", [None, (0.5, 3.0, 1.0)])
def test_the_loss_of_several_labels_is_the_focal_one_of_lin(gamma, weights):
    from torchvision.ops import sigmoid_focal_loss

    logits, marks = torch.randn(4, 3), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    each = sigmoid_focal_loss(logits, marks.float(), alpha=-1, gamma=gamma)
    expected = (each * (torch.tensor(weights) ** marks if weights else 1)).mean()
    task = Multilabel(("a", "b", "c"), weights, gamma)
    torch.testing.assert_close(task.loss(logits, marks.to(torch.int8)), expected)
    if not gamma:
        positive = torch.tensor(weights) if weights else None
        plain = functional.binary_cross_entropy_with_logits(logits, marks.float(), pos_weight=positive)
        torch.testing.assert_close(expected, plain)
    framed = torch.full((2, 3, 3), UNLABELLED)
    framed[:, :2] = marks.view(2, 2, 3)
    padded = torch.randn(2, 3, 3)
    padded[:, :2] = logits.view(2, 2, 3)
    frames = FrameMultilabel(("a", "b", "c"), weights, gamma)
    torch.testing.assert_close(frames.loss(padded, framed), expected)
    assert frames.metrics(*frames.keep_rows(padded, framed)) == {"loss": pytest.approx(expected.item())}


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_of_one_class_is_the_formula_and_its_slope_is_finite(gamma):
    task = Classification(("a", "b", "c"), (0.5, 2.0, 1.0), gamma)
    logits = torch.randn(5, 3, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 1, 0])
    rows = torch.arange(5)
    probabilities, weights = logits.softmax(1)[rows, targets], torch.tensor(task.class_weights)[targets]
    expected = (-weights * (1 - probabilities) ** gamma * probabilities.log()).sum() / weights.sum()
    torch.testing.assert_close(task.loss(logits, targets), expected)
    certain = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    task.loss(certain, torch.tensor([0])).backward()
    assert certain.grad.isfinite().all()


def test_weights_of_the_effective_number_are_those_of_cui():
    task = Classification.from_clips(labelled(*"aaaaaab"), EFFECTIVE)
    by_hand = [(1 - 0.9) / (1 - 0.9**6), 1.0]
    assert task.class_weights == pytest.approx([2 * weight / sum(by_hand) for weight in by_hand])
    assert np.mean(task.class_weights) == pytest.approx(1)
    many = Multilabel.from_clips([*labelled(*["a|b"] * 3), *labelled("b")], EFFECTIVE)
    by_hand = [0.1 / (1 - 0.9**3), 0.1 / (1 - 0.9**4)]
    assert many.class_weights == pytest.approx([2 * weight / sum(by_hand) for weight in by_hand])
    none = TaskConfig(class_weights="effective_number", effective_number_beta=0)
    assert Classification.from_clips(labelled(*"aab"), none).class_weights == (1, 1)


def test_balanced_weights_of_several_labels_make_positive_rows_count_as_much_as_negative_ones():
    task = Multilabel.from_clips(multilabel_clips(), BALANCED)
    assert task.class_weights == pytest.approx((3 / 1, 2 / 2, 2 / 2))
    clips = [make_clip("a", frame_labels=OVERLAP), make_clip("b", end_seconds=1.0)]
    assert FrameMultilabel.from_clips(clips, BALANCED).class_weights == pytest.approx((1.2 / 0.8, 1.5 / 0.5))
    always = Multilabel.from_clips(labelled("a", "a"), BALANCED)
    assert always.class_weights == (0.01,)


def test_several_labels_are_refused_where_one_is_asked_for():
    with pytest.raises(
        ManifestError, match=r"'c1' has several labels, x\|y: .* Choose the task 'multilabel'"
    ):
        Classification.from_clips(labelled("x", "x|y"), CONFIG)
    clips = [make_clip("a", frame_labels=OVERLAP)]
    with pytest.raises(
        ManifestError, match=r"overlap, walk until 0.5 s and talk from 0.2 s: .*frame_multilabel"
    ):
        FrameLabels.from_clips(clips, CONFIG)
    with pytest.raises(ManifestError, match="has no label: multilabel needs at least 1"):
        Multilabel.from_clips([make_clip("a")], CONFIG)
    task = Multilabel.from_clips(labelled("x", "y"), CONFIG)
    with pytest.raises(ManifestError, match="has label 'z', which the train split does not have"):
        task.check(labelled("x|z"))


def test_classes_of_few_clips_and_clips_without_a_label_are_named(caplog):
    with caplog.at_level(logging.INFO):
        Classification.from_clips(labelled(*"aaaaaabbb"), CONFIG)
        Multilabel.from_clips([*labelled(*["a|b"] * 5), make_clip("none")], CONFIG)
    assert [record.getMessage().partition(". ")[0] for record in caplog.records] == [
        "1 of 2 classes have fewer than 5 train clips: b (3)",
        "1 of 6 train clips have no label: they count as clips with none of the classes.",
    ]


def predictions_of(task, clips, outputs, seconds=((0.0,),)) -> Predictions:
    seconds = [list(row) for row in itertools.islice(itertools.cycle(seconds), len(clips))]
    return Predictions(
        tuple(clips),
        tuple(outputs),
        tuple(task.targets(batch_of(clips, seconds))),
        tuple(torch.tensor(row) for row in seconds),
    )


def test_thresholds_are_chosen_by_answers_about_the_val_split_and_kept():
    clips = multilabel_clips()
    task = Multilabel.from_clips(clips, CONFIG)
    logits = torch.tensor([[-9.0, 0.0, 2.0], [-9.0, -3.0, 1.0], [-5.0, -1.0, 3.0], [-9.0, -2.0, -1.0]])
    predictions = predictions_of(task, clips, logits)
    tuned = task.tuned(predictions)
    assert tuned.thresholds == pytest.approx(torch.sigmoid(torch.tensor([-5.0, -1.0, 1.0])).tolist())
    assert tuned.measure(predictions)(np.ones(4))["micro_f1"] == pytest.approx(2 * 5 / (5 + 6))
    assert task.measure(predictions)(np.ones(4))["micro_f1"] == pytest.approx(2 * 3 / (5 + 4))
    assert Multilabel.from_description(tuned.describe()) == tuned
    assert tuned.tuned(None) == task
    rows = tuned.render(logits[2], torch.tensor([0.0]))
    assert [row["label"] for row in rows] == ["walk", "talk", "sing"]
    assert rows[2]["probability"] == pytest.approx(1 / (1 + math.exp(5)))
    assert tuned.render(logits[3], torch.tensor([0.0])) == []
    table = prediction_table({"recurrent": predictions}, task=tuned)
    assert table["truth"].to_pylist() == [["talk", "walk"], ["walk"], ["sing", "talk"], []]
    assert table["answer"].to_pylist() == [["talk", "walk"], ["walk"], ["sing", "talk", "walk"], []]
    assert np.average(table["loss"], weights=table["loss_weight"]) == pytest.approx(
        tuned.measure(predictions)(np.ones(4))["loss"]
    )


@pytest.mark.parametrize("kind", [Multilabel, FrameMultilabel])
def test_predictions_say_the_labels_that_evaluation_says_also_at_the_thresholds_themselves(kind):
    classes, clips = tuple("abcde"), [make_clip(f"c{number}", label="a|b|c|d|e") for number in range(40)]
    clips = [
        replace(clip, frame_labels=intervals(*((0.0, 1.0, name) for name in classes))) for clip in clips[:20]
    ] + clips[20:]
    shape = (1, 5) if kind is FrameMultilabel else (5,)
    task = kind(classes)
    predictions = predictions_of(task, clips, 3 * torch.randn(40, *shape))
    tuned = task.tuned(predictions)
    table = tuned.tabulate(predictions)
    for output, answer, found in zip(
        predictions.outputs, table["answer"].to_pylist(), table["probabilities"].to_pylist(), strict=True
    ):
        rows = tuned.render(output, torch.tensor([0.0]))
        assert sorted(row["label"] for row in rows) == answer
        assert {row["probability"] for row in rows} <= set(found)


def test_intervals_of_several_labels_overlap_and_come_by_their_starts():
    task = FrameMultilabel(("talk", "walk"), thresholds=(0.5, 0.9))
    probabilities = torch.tensor([[0.6, 0.1], [0.8, 0.95], [0.1, 0.95], [0.7, 0.5]])
    rows = task.render(probabilities.logit(), torch.tensor([0.0, 0.1, 0.2, 0.3]))
    found = [
        tuple(round(value, 6) if isinstance(value, float) else value for value in row.values())
        for row in rows
    ]
    assert found == [(0.0, 0.2, "talk", 0.7), (0.1, 0.3, "walk", 0.95), (0.3, 0.4, "talk", 0.7)]


def test_each_frame_has_a_row_for_each_of_its_labels_and_one_without_a_label():
    task = FrameMultilabel(("talk", "walk"), thresholds=(0.5, 0.9))
    probabilities = torch.tensor([[0.6, 0.1], [0.8, 0.95], [0.1, 0.2]], dtype=torch.float64)
    rows = task.render_frames(probabilities.logit(), torch.tensor([0.0, 0.5, 1.0]))
    assert [tuple(row.values()) for row in rows] == [
        (0.0, "talk", pytest.approx(0.6)),
        (0.5, "walk", pytest.approx(0.95)),
        (0.5, "talk", pytest.approx(0.8)),
        (1.0,),
    ]


def test_the_windows_of_a_clip_are_joined_with_the_labels_of_their_frames():
    task = FrameMultilabel(("talk", "walk"))
    clip = make_clip("a", frame_labels=OVERLAP)
    times = [0.0, 0.25, 0.5]
    whole = task.targets(batch_of([clip], [times]))[0]
    windows = [
        _Answer(
            clip, first, torch.zeros(2, 2), whole[first : first + 2], torch.tensor(times[first : first + 2])
        )
        for first in (0, 1)
    ]
    merged = _merge(windows, per_frame=True)
    assert torch.equal(merged.target, whole)


@pytest.mark.parametrize("kind", [Multilabel, FrameMultilabel])
def test_what_may_choose_the_best_epoch_is_measured_and_a_single_class_is_allowed(kind):
    clips = [make_clip("a", label="x", frame_labels=intervals((0, 0.5, "x"))), make_clip("b"), make_clip("c")]
    task = kind.from_clips(clips, CONFIG)
    shape = (2, 1) if task.facts.per_frame else (1,)
    predictions = predictions_of(task, clips, torch.randn(3, *shape), ((0.0, 0.9),))
    measured = task.tuned(predictions).measure(predictions)(np.ones(3))
    assert set(task.facts.monitors) <= set(measured)
    assert all(map(math.isfinite, measured.values()))
    without = task.measure(predictions)(np.array([0, 1, 1]))  # no label is right in these clips
    assert math.isnan(without["mAP"])
    assert TASK_CLASSES[task.name] is kind


def test_each_label_is_drawn_equally_often_and_all_its_samples_before_one_again():
    labels = {f"c{i}": ("ab"[i >= 8],) for i in range(10)} | {"c10": ()}
    samples = [Sample(make_clip(clip_id), 0, 4) for clip_id in labels]
    drawn = draw_equally(samples, labels, rng=np.random.default_rng(0))
    names = [sample.clip.clip_id for sample in drawn]
    counts = [
        sum(name in some for name in names) for some in ({f"c{i}" for i in range(8)}, {"c8", "c9"}, {"c10"})
    ]
    assert sorted(counts) == [3, 4, 4]
    assert max(names.count(f"c{i}") for i in range(8)) == 1
    assert {names.count("c8"), names.count("c9")} <= {1, 2}
    several = {"c0": ("a", "b"), "c1": ("a",), "c2": ("a",), "c3": ("a",)}
    samples = [Sample(make_clip(clip_id), 0, 4) for clip_id in several]
    names = [s.clip.clip_id for s in draw_equally(samples, several, rng=np.random.default_rng(0))]
    assert names.count("c0") >= 2  # twice for b


def test_balanced_epochs_depend_on_seed_and_epoch_alone_and_evaluation_has_every_clip():
    maps = random_maps([4] * 12, (1, 1, 1))
    clips = [make_clip(clip_id, label="ab"[number == 0]) for number, clip_id in enumerate(maps)]
    features, config = make_features(maps), LoaderConfig(batch_size=4, balanced_sampling=True)

    def epoch(number: int, seed: int | None = 0) -> list[str]:
        loader = make_loader(
            features,
            clips,
            config,
            device=torch.device("cpu"),
            shuffle_seed=seed,
            labels=lambda clip: clip.labels,
        )
        assert len(loader) == 3
        return [clip.clip_id for batch in loader.epoch(number) for clip in batch.clips]

    assert epoch(1) == epoch(1)
    assert epoch(0) != epoch(1) != epoch(1, seed=1)
    assert epoch(5).count("c0") == 6
    assert epoch(5, seed=None) == list(maps)


def test_metrics_of_unlabelled_rows_do_not_reach_the_training_loss():
    task = replace(FrameMultilabel(("a",)), class_weights=(2.0,))
    targets = torch.full((1, 2, 1), UNLABELLED, dtype=torch.int8)
    outputs = torch.randn(1, 2, 1, requires_grad=True)
    loss = task.loss(outputs, targets)
    loss.backward()
    assert loss.item() == 0
    assert not outputs.grad.any()
