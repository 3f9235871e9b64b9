"""Recorded answers have the metrics of the evaluation that recorded them, for any draw of the clips."""

import numpy as np
import pytest
import torch

from pipeline.learn.answering import answer_batches
from pipeline.learn.answers import asked, hits, tally
from pipeline.learn.evaluation import prediction_table, score_predictions
from pipeline.learn.metrics import Units
from pipeline.learn.streaming import Loader
from pipeline.learn.tasks import Predictions
from pipeline.manifest import FrameLabel, Question
from tests.support.checkpoints import TASKS
from tests.support.configs import live_config
from tests.support.runs import answer_table
from tests.support.toy import make_clip, make_features, random_maps

WORDS = ("one moves left", "two stays", "One  moves left")


def answered(name: str, *, num_clips: int = 9) -> Predictions:
    """What an untrained model says about clips of which some have two questions, values or captions."""
    rng = np.random.default_rng(0)
    maps = random_maps([int(n) for n in rng.integers(5, 9, num_clips)], (2, 1, 1))
    clips = [
        make_clip(
            clip_id,
            label=("left", "right", "up")[number % 3],
            values=(10.0 + number, -5.0 + number % 2),
            captions=WORDS[: 1 + number % 3],
            frame_labels=(FrameLabel(0.0, 0.04 * (1 + number % 4), "left"), FrameLabel(0.16, 0.28, "up")),
            questions=tuple(
                Question("which is it?", answer) for answer in ("one", "two", "other")[: 1 + number % 3]
            ),
        )
        for number, clip_id in enumerate(maps)
    ]
    config = live_config(task=name, hidden_size=4, projection=None, bidirectional=True)
    model = TASKS[name].build_model("recurrent", config, map_shapes=[(2, 1, 1)], seed=1)
    loader = Loader(make_features(maps), clips, 4, 1)
    return answer_batches(model, loader.epoch(), task=TASKS[name], device=torch.device("cpu"))


@pytest.mark.parametrize("name", TASKS)
def test_a_table_has_the_headline_metric_and_the_loss_of_its_evaluation(name: str) -> None:
    task, predictions = TASKS[name], answered(name)
    counted = tally(prediction_table({"shuffled": answered(name), "recurrent": predictions}, task=task))
    assert counted.clip_ids == tuple(sorted(clip.clip_id for clip in predictions.clips))
    measure = task.measure(predictions)
    for counts in (np.ones(9), *Units.of([None] * 9).draws(num_resamples=20, seed=1)):
        assert counted.metric(counts) == pytest.approx(measure(counts)[task.facts.headline], abs=1e-12)
    score = score_predictions(predictions, task=task, num_resamples=2, seed=0)
    assert counted.loss == pytest.approx(score.values()["loss"], rel=1e-6)


def test_shares_of_right_answers_are_counted_clip_by_clip() -> None:
    table = answer_table(["b", "b", "a", "a"], task="frame_labels", truth=list("xxyy"), answer=list("xyyy"))
    counted = tally(table)
    assert counted.clip_ids == ("a", "b")
    assert counted.by_clip.tolist() == [1.0, 0.5]
    assert counted.metric(np.array([1, 1])) == 0.75
    assert counted.metric(np.array([0, 3])) == 0.5
    assert np.isnan(counted.metric(np.array([0, 0])))


def test_errors_of_several_values_are_roots_of_means_clip_by_clip() -> None:
    table = answer_table(
        list("aabb"),
        task="regression",
        truth=[0.0, 0.0, 1.0, 2.0],
        answer=[3.0, 4.0, 1.0, 4.0],
        value=[1, 2, 1, 2],
    )
    counted = tally(table)
    np.testing.assert_allclose(counted.by_clip, [-np.sqrt(12.5), -np.sqrt(2)])
    expected = (np.sqrt(9 / 2) + np.sqrt((16 + 4) / 2)) / 2
    assert counted.metric(np.ones(2)) == pytest.approx(expected)
    assert not hits(table).any()


def test_what_was_asked_about_a_clip_is_all_but_the_answer() -> None:
    table = answer_table(
        ["a", "a"], task="question_answering", truth=["x", "y"], answer=["x", "z"], question=["p", "q"]
    )
    assert asked(table) == {"a": [{"question": "p", "truth": "x"}, {"question": "q", "truth": "y"}]}
