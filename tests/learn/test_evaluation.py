from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.learn.answering import answer_batches
from pipeline.learn.evaluation import (
    Score,
    baseline_sentence,
    comparison_table,
    order_sentence,
    score_predictions,
)
from pipeline.learn.metrics import UNLABELLED, Estimate, Units
from pipeline.learn.models import build_model
from pipeline.learn.streaming import Loader
from pipeline.learn.tasks import Classification, FrameLabels, Predictions, Regression
from pipeline.manifest import FrameLabel
from pipeline.settings.model import ModelConfig
from pipeline.settings.tasks import TASKS
from tests.support.toy import make_clip, make_features, order_task, random_maps

CPU = torch.device("cpu")
TASK = Classification(("first", "second"))


def test_predictions_do_not_depend_on_the_batch():
    clips, maps = order_task(7)
    features = make_features(maps)
    model = build_model("recurrent", ModelConfig(hidden_size=4), map_shapes=[(2, 1, 1)], num_outputs=2)
    alone = answer_batches(model, Loader(features, clips, 1, 1).epoch(), task=TASK, device=CPU)
    together = answer_batches(model, Loader(features, clips, 7, 1).epoch(), task=TASK, device=CPU)
    assert alone.clips == together.clips == tuple(clips)
    assert torch.stack(together.targets).tolist() == [0, 1, 0, 1, 0, 1, 0]
    torch.testing.assert_close(torch.stack(alone.outputs), torch.stack(together.outputs))
    for i, values in enumerate(maps.values()):
        expected = model(torch.from_numpy(values)[None], torch.tensor([len(values)]))[0]
        torch.testing.assert_close(together.outputs[i], expected)


class FirstChannels(nn.Module):
    """Says what it sees: the first two values of each frame, or of the first frame."""

    def __init__(self, *, per_frame: bool) -> None:
        super().__init__()
        self.per_frame = per_frame

    def forward(self, maps, lengths):
        assert int(lengths.max()) <= maps.shape[1]
        values = maps.flatten(2)[..., :2].float()  # (B, T, 2)
        return values if self.per_frame else values[:, 0]


def test_a_clips_answer_is_the_mean_over_its_windows():
    maps = random_maps([7, 2], (2, 1, 1))
    clips = [make_clip(clip_id, label="first") for clip_id in maps]
    loader = Loader(make_features(maps), clips, 2, 1, window=3)
    predictions = answer_batches(FirstChannels(per_frame=False), loader.epoch(), task=TASK, device=CPU)
    assert [clip.clip_id for clip in predictions.clips] == ["c0", "c1"]
    by_hand = maps["c0"].astype(np.float32)[[0, 3, 4], :, 0, 0].mean(axis=0)
    np.testing.assert_allclose(predictions.outputs[0], by_hand, rtol=1e-6)
    np.testing.assert_allclose(predictions.outputs[1], maps["c1"][0, :, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(predictions.frame_seconds[0], np.arange(7) / 25)


@pytest.mark.parametrize("shuffle_seed", [None, 3])
@pytest.mark.parametrize("stride", [2, 4])
def test_an_answer_a_frame_stands_at_its_frame_whatever_windows_and_order(stride, shuffle_seed):
    maps = random_maps([9, 4], (2, 1, 1))
    clips = [make_clip(clip_id, frame_labels=(FrameLabel(0.04, 0.12, "b"),)) for clip_id in maps]
    task = FrameLabels(("a", "b"))
    loader = Loader(make_features(maps), clips, 3, 1, window=4, stride=stride)
    predictions = answer_batches(
        FirstChannels(per_frame=True), loader.epoch(), task=task, device=CPU, shuffle_seed=shuffle_seed
    )
    for clip_id, output, target in zip(maps, predictions.outputs, predictions.targets, strict=True):
        np.testing.assert_allclose(output, maps[clip_id][:, :, 0, 0], rtol=1e-6)
        labels = [UNLABELLED, 1, 1, *[UNLABELLED] * (len(output) - 3)]
        assert target.tolist() == labels
    rows, targets, numbers = predictions.rows(per_frame=True)
    assert (len(rows), len(targets)) == (13, 13)
    assert numbers.tolist() == [0] * 9 + [1] * 4


def test_shuffled_frames_are_each_clips_own_in_an_order_that_follows_from_the_seed():
    maps = random_maps([12, 9], (2, 1, 1))
    clips = [make_clip(clip_id, label="first") for clip_id in maps]
    seen = []

    class Watching(nn.Module):
        def forward(self, maps, lengths):
            assert lengths.tolist() == [12, 9][: len(lengths)] or len(lengths) == 1
            seen.append(maps[..., 0, 0].clone())
            return torch.zeros(len(maps), 2)

    def shown(batch_size: int, seed: int | None) -> list[np.ndarray]:
        seen.clear()
        loader = Loader(make_features(maps), clips, batch_size, 1)
        answer_batches(Watching(), loader.epoch(), task=TASK, device=CPU, shuffle_seed=seed)
        rows = [row for batch in seen for row in batch]
        return [row[: len(clip)].numpy() for row, clip in zip(rows, maps.values(), strict=True)]

    ordered, shuffled = shown(2, None), shown(2, 0)
    for frames, others, again in zip(ordered, shuffled, shown(1, 0), strict=True):
        assert not np.array_equal(frames, others)
        np.testing.assert_array_equal(np.sort(frames, axis=0), np.sort(others, axis=0))
        np.testing.assert_array_equal(others, again)
    assert not np.array_equal(shown(2, 1)[0], shuffled[0])


def make_score(accuracy: float, spread: float = 0.01) -> Score:
    draws = accuracy + spread * np.linspace(-1, 1, 101)
    return Score(
        {"accuracy": Estimate(accuracy, draws[2], draws[98])}, {"accuracy": draws}, Units.of([None] * 150)
    )


def test_a_score_has_every_metric_with_its_interval():
    clips, maps = order_task(40)
    model = build_model("recurrent", ModelConfig(hidden_size=4), map_shapes=[(2, 1, 1)], num_outputs=2)
    predictions = answer_batches(
        model, Loader(make_features(maps), clips, 8, 1).epoch(), task=TASK, device=CPU
    )
    result = score_predictions(predictions, task=TASK, num_resamples=200, seed=0)
    outputs, targets, _ = predictions.rows(per_frame=False)
    assert result.metrics["loss"].value == pytest.approx(TASK.loss(outputs, targets).item())
    assert result.units.num_clips == 40
    for name, metric in result.metrics.items():
        assert metric.low <= metric.value <= metric.high
        assert metric.low < metric.high
        assert len(result.resampled[name]) == 200
    document = result.as_json()
    assert list(document) == [
        "loss",
        "accuracy",
        "macro_f1",
        "ece",
        "mAP",
        "num_clips",
        "num_units",
        "intervals",
    ]
    assert document["intervals"]["mAP"] == [result.metrics["mAP"].low, result.metrics["mAP"].high]


def test_what_is_not_known_is_null_in_json_and_said_in_the_table():
    metrics = {"loss": Estimate(0.25, np.nan, np.nan), "mAP": Estimate(np.nan, np.nan, np.nan)}
    result = Score(metrics, {name: np.full(5, e.value) for name, e in metrics.items()}, Units.of([None]))
    assert result.as_json() == {
        "loss": 0.25,
        "mAP": None,
        "num_clips": 1,
        "num_units": 1,
        "intervals": {"loss": None, "mAP": None},
    }
    assert comparison_table({"LSTM": result}).splitlines() == [
        "                  loss                  mAP  clips",
        "LSTM  0.2500 [unknown]  undefined [unknown]      1",
    ]


def test_the_table_has_a_row_a_model_and_a_column_a_metric():
    table = comparison_table({"LSTM": make_score(0.95), "mean-pool + linear": make_score(0.25)})
    assert table.splitlines() == [
        "                                 accuracy  clips",
        "LSTM                0.9500 [0.940, 0.960]    150",
        "mean-pool + linear  0.2500 [0.240, 0.260]    150",
    ]


def test_the_report_says_whether_the_order_of_frames_was_used(monkeypatch):
    ordered, shuffled = make_score(0.95), make_score(0.5, spread=0.05)
    assert order_sentence(ordered, shuffled, task=TASK, monitor="accuracy") == (
        "In order against shuffled: accuracy +0.4500 [+0.412, +0.488]: the model uses the order of frames."
    )
    for other in (ordered, make_score(0.951, spread=0.1), make_score(0.99)):
        assert "not shown that the order" in order_sentence(ordered, other, task=TASK, monitor="accuracy")
    monkeypatch.setitem(TASKS, "classification", replace(TASK.facts, monitors={"accuracy": -1}))
    assert "uses the order" in order_sentence(make_score(2.0), make_score(3.0), task=TASK, monitor="accuracy")


def test_the_report_says_whether_the_model_is_better_than_the_baseline():
    model, baseline = make_score(0.95), make_score(0.5, spread=0.05)
    options = {"label": "mean-pool + linear", "task": TASK, "monitor": "accuracy"}
    assert baseline_sentence(model, baseline, **options) == (
        "Against mean-pool + linear: accuracy +0.4500 [+0.412, +0.488]: the model is better."
    )
    assert baseline_sentence(baseline, model, **options).endswith(
        ": it is not shown that the model is better."
    )


@pytest.mark.parametrize("num_clips", [1, 19, 20])
def test_there_is_no_verdict_from_fewer_than_twenty_clips(num_clips):
    ordered, shuffled = (
        replace(make_score(value), units=Units.of([None] * num_clips)) for value in (0.9, 0.5)
    )
    sentence = order_sentence(ordered, shuffled, task=TASK, monitor="accuracy")
    assert sentence.startswith("In order against shuffled: accuracy +0.4000 [")
    assert ("the model uses the order" in sentence) == (num_clips == 20)
    few = f"too few clips to tell whether the order of frames helps this model ({num_clips}; it takes 20)."
    assert sentence.endswith(few) == (num_clips < 20)


def test_clips_of_one_group_are_drawn_together_and_nineteen_groups_have_no_verdict():
    right = np.random.default_rng(0).integers(2, size=57)
    groups = [f"g{number // 3}" for number in range(57)]
    predictions = Predictions(
        clips=tuple(make_clip(f"c{n:02}", group=group) for n, group in enumerate(groups)),
        outputs=tuple(torch.eye(2)[torch.from_numpy(1 - right)]),
        targets=(torch.tensor(0),) * 57,
        frame_seconds=(torch.zeros(1),) * 57,
    )
    result = score_predictions(predictions, task=TASK, num_resamples=100, seed=4)
    rng = np.random.default_rng(4)
    drawn = [rng.integers(19, size=19) for _ in range(100)]
    expected = [right.reshape(19, 3)[groups].mean() for groups in drawn]
    assert result.resampled["accuracy"] == pytest.approx(expected)
    assert comparison_table({"model": result}).endswith("57 in 19 groups")
    assert result.as_json()["num_units"] == 19
    sentence = order_sentence(result, result, task=TASK, monitor="accuracy")
    assert (
        "too few groups to tell whether the order of frames helps this model (19; it takes 20)." in sentence
    )


def test_a_single_clip_shows_nothing_about_the_order_of_frames():
    ordered, shuffled = (
        Score({"loss": Estimate(v, v, v)}, {"loss": np.full(9, v)}, Units.of([None])) for v in (0.5, 0.503)
    )
    assert order_sentence(ordered, shuffled, task=TASK, monitor="loss") == (
        "In order against shuffled: loss -0.0030 [unknown]: too few clips to tell whether the order of frames"
        " helps this model (1; it takes 20)."
    )


def test_models_of_several_values_are_compared_in_units_of_each_ones_deviation():
    task = Regression((0.0, 0.0), (1e6, 1.0))

    def score_of(wide: float, narrow: float) -> Score:
        metrics = {"mae": (wide + narrow) / 2, "mae_1": wide, "mae_2": narrow}
        draws = {name: value * np.linspace(0.9, 1.1, 11) for name, value in metrics.items()}
        return Score({name: Estimate(v, v, v) for name, v in metrics.items()}, draws, Units.of([None] * 40))

    # In order the narrow value is right, and the wide one a little worse.
    scores = (score_of(1.01e5, 0.0), score_of(1.00e5, 2.0))
    sentence = order_sentence(*scores, task=task, monitor="mae")
    assert sentence.startswith(
        "In order against shuffled: mae in standard deviations -0.9995 [-1.094, -0.905]: the model uses"
    )
