from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.learn.evaluation import prediction_table, score_predictions
from pipeline.learn.subgroups import MAX_VALUES, score_subgroups
from pipeline.learn.tasks import Classification, Predictions
from tests.support.toy import make_clip

TASK = Classification(("first", "second"))


def make_predictions(num_clips: int) -> Predictions:
    """Random logits. Cameras are a, b and none in turn; each clip has a number of its own."""
    generator = torch.Generator().manual_seed(0)
    clips = tuple(
        make_clip(
            f"c{number}",
            meta={"number": str(number), **({"camera": "ab"[number % 3]} if number % 3 < 2 else {})},
        )
        for number in range(num_clips)
    )
    return Predictions(
        clips=clips,
        outputs=tuple(torch.randn(num_clips, 2, generator=generator)),
        targets=tuple(torch.randint(2, (num_clips,), generator=generator)),
        frame_seconds=(torch.zeros(1),) * num_clips,
    )


def test_a_value_is_scored_on_its_own_clips_with_the_intervals_of_evaluation():
    predictions = make_predictions(60)
    camera, number = score_subgroups(predictions, task=TASK, num_resamples=50, seed=3)
    assert (camera.column, camera.num_values) == ("meta_camera", 3)
    assert list(camera.scores) == ["", "a", "b"]
    for value, first in (("a", 0), ("b", 1), ("", 2)):
        outputs = torch.stack(predictions.outputs)[first::3]
        targets = torch.stack(predictions.targets)[first::3]
        found = camera.scores[value]
        assert found.units.num_clips == 20
        assert found.values()["accuracy"] == (outputs.argmax(dim=1) == targets).double().mean().item()
        expected = score_predictions(
            predictions.take(range(first, 60, 3)), task=TASK, num_resamples=50, seed=3
        )
        assert found.as_json() == expected.as_json()
    assert (number.num_values, number.scores) == (60, None)


def test_tables_and_json_say_what_is_reported_of_each_column():
    camera, number = score_subgroups(make_predictions(60), task=TASK, num_resamples=9, seed=0)
    header, *rows = camera.table(label="LSTM").splitlines()
    assert header.split("  ")[0] == "LSTM, by meta_camera"
    assert [row.split()[0] for row in rows] == ["(empty)", "a", "b"]
    assert number.table(label="LSTM") == (
        "meta_number has 60 values. Metrics are reported for columns with at most 20."
    )
    assert number.as_json() == {"num_values": 60, "values": None}
    assert camera.as_json()["num_values"] == 3
    assert camera.as_json()["values"]["a"]["num_clips"] == 20
    (largest,) = (
        part
        for part in score_subgroups(make_predictions(MAX_VALUES), task=TASK, num_resamples=2, seed=0)
        if part.column == "meta_number"
    )
    assert len(largest.scores) == MAX_VALUES
    assert largest.scores["7"].units.num_clips == 1


def test_clips_without_columns_of_ones_own_have_no_subgroups():
    predictions = make_predictions(4)
    bare = replace(predictions, clips=tuple(make_clip(f"c{number}") for number in range(4)))
    assert score_subgroups(bare, task=TASK, num_resamples=2, seed=0) == ()
    assert not any("meta" in name for name in prediction_table({"m": bare}, task=TASK).column_names)


def test_the_table_of_answers_has_the_columns_of_each_answers_clip():
    predictions = make_predictions(5)
    shuffled = predictions.take([4, 0, 2])
    table = prediction_table({"recurrent": predictions, "shuffled": shuffled}, task=TASK)
    assert table.column_names[-2:] == ["meta_camera", "meta_number"]
    assert table["meta_number"].to_pylist() == ["0", "1", "2", "3", "4", "4", "0", "2"]
    assert table["meta_camera"].to_pylist() == ["a", "b", None, "a", "b", "b", "a", None]


def test_taken_predictions_keep_outputs_and_clips_together():
    predictions = make_predictions(5)
    taken = predictions.take([3, 1])
    assert [clip.clip_id for clip in taken.clips] == ["c3", "c1"]
    np.testing.assert_array_equal(torch.stack(taken.outputs), torch.stack(predictions.outputs)[[3, 1]])
    assert [one.clips for one in predictions.by_clip()] == [(clip,) for clip in predictions.clips]
    with pytest.raises(IndexError):
        predictions.take([5])
