"""`predict` as a function: its answers and progress, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.backbone import Weights
from pipeline.backbone.weights import save_weights
from pipeline.deploy.prediction import predict
from pipeline.errors import ConfigError, ManifestError, MissingNetworkError, QuestionsError
from pipeline.learn.checkpoint import save_checkpoint
from tests.support.checkpoints import CLASSES, make_checkpoint
from tests.support.extraction import random_weights
from tests.support.media import write_video

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture
def checkpoint(tmp_path: Path, weights: Weights) -> Path:
    save_weights(weights, path=tmp_path / "weights/any.safetensors")
    save_checkpoint(tmp_path / "checkpoint", make_checkpoint("classification", weights))
    return tmp_path / "checkpoint"


def test_each_source_has_answers_or_an_error_and_progress_counts_them(tmp_path, checkpoint):
    write_video(tmp_path / "good.mp4", num_frames=3)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    progress = []
    bad, good = predict(
        str(checkpoint),
        [str(tmp_path / "bad.mp4"), tmp_path / "good.mp4"],
        weights=tmp_path / "weights",
        num_answers=2,
        on_progress=lambda *done: progress.append(done),
    )
    assert progress == [(0, 2), (1, 2), (2, 2)]
    assert bad.answers == ()
    assert "bad.mp4 can't be decoded" in bad.error
    assert good.error is None
    assert good.source == str(tmp_path / "good.mp4")
    assert {answer["label"] for answer in good.answers} < set(CLASSES)
    assert len(good.answers) == 2


def test_an_answer_is_the_mean_of_the_probabilities_in_several_views(tmp_path, checkpoint):
    write_video(tmp_path / "good.mp4", num_frames=3, size=(48, 64))

    def answer(*views: str) -> dict[str, float]:
        (said,) = predict(
            checkpoint, [tmp_path / "good.mp4"], weights=tmp_path / "weights", num_answers=3, views=views
        )
        return {each["label"]: each["probability"] for each in said.answers}

    center, corner = answer("center"), answer("bottom_right-flip")
    assert center != corner
    expected = {label: (center[label] + corner[label]) / 2 for label in CLASSES}
    assert answer("center", "bottom_right-flip") == pytest.approx(expected, rel=1e-5)


def test_clips_of_a_table_have_their_time_ranges_and_columns_of_ones_own(tmp_path, checkpoint):
    write_video(tmp_path / "videos/long.mp4", num_frames=7)
    (tmp_path / "clips.csv").write_text(
        "clip_id,source,start_seconds,end_seconds,meta_camera\n"
        "begin,videos/long.mp4,,0.3,2\n,videos/long.mp4,0.3,,\ngone,videos/gone.mp4,,,1\n"
    )
    whole, begin, end, gone = predict(
        checkpoint, [tmp_path / "videos/long.mp4", tmp_path / "clips.csv"], weights=tmp_path / "weights"
    )
    assert [begin.source, end.source, gone.source] == ["begin", "videos/long_0.3-end", "gone"]
    assert [begin.meta, end.meta, gone.meta, whole.meta] == [{"camera": "2"}, {}, {"camera": "1"}, {}]
    assert begin.answers != end.answers != whole.answers
    assert "gone.mp4" in gone.error
    (tmp_path / "clips.csv").write_text("source,camera\nvideos/long.mp4,2\n")
    with pytest.raises(ManifestError, match=r"unknown column 'camera'.*: meta_camera\."):
        predict(checkpoint, [tmp_path / "clips.csv"], weights=tmp_path / "weights")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_answers": 0}, ConfigError, "0 answers: give at least 1"),
        ({"image_fps": 0.0}, ConfigError, r"image_fps 0\.0: give a rate above 0"),
        ({"chunk_frames": 0}, ConfigError, "chunk_frames 0: give at least 1"),
        ({"views": ["left"]}, ConfigError, r"views \['left'\]: it is none of center, flip, top_left"),
        ({"views": []}, ConfigError, "name at least one view"),
        ({"each_frame": True}, ConfigError, "task is classification: it has no answer for each frame"),
        ({"questions": ["which?"]}, QuestionsError, "task is classification, which takes no questions"),
        ({"weights": "nowhere"}, MissingNetworkError, r"nowhere does not have the weights .*from random:0"),
    ],
)
def test_what_is_impossible_is_refused(tmp_path, checkpoint, options, error, message):
    with pytest.raises(error, match=message):
        predict(checkpoint, ["x.mp4"], **{"weights": tmp_path / "weights", **options})


def test_a_single_source_is_refused_with_the_list_that_it_should_be(checkpoint):
    with pytest.raises(TypeError, match=r"give \['x\.mp4'\]"):
        predict(checkpoint, "x.mp4")


@pytest.mark.usefixtures("checkpoint")
def test_a_model_of_windows_answers_frames_of_a_whole_clip_as_one_of_whole_clips(tmp_path, weights):
    write_video(tmp_path / "clip.mp4", num_frames=9)
    for name, options in {"whole": {}, "windows": {"window": 3, "stride": 2}}.items():
        save_checkpoint(tmp_path / name, make_checkpoint("frame_labels", weights, **options))

    def labels(name: str, **options: object) -> list[dict[str, str | float]]:
        (result,) = predict(
            tmp_path / name, [tmp_path / "clip.mp4"], weights=tmp_path / "weights", each_frame=True, **options
        )
        return list(result.answers)

    whole = labels("whole")
    assert [row["frame_seconds"] for row in whole] == pytest.approx(np.arange(9) / 10)
    assert {row["label"] for row in whole} <= set(CLASSES)
    for rows in (labels("whole", chunk_frames=2), labels("windows", chunk_frames=4)):
        assert [row["label"] for row in rows] == [row["label"] for row in whole]
        assert [row["probability"] for row in rows] == pytest.approx([row["probability"] for row in whole])
    others = [row["probability"] for row in labels("windows")]
    assert others != pytest.approx([row["probability"] for row in whole])


@pytest.mark.usefixtures("checkpoint")
def test_a_transformer_does_not_read_chunks(tmp_path, weights):
    model = make_checkpoint("frame_labels", weights, cell="transformer", hidden_size=8, num_heads=2)
    save_checkpoint(tmp_path / "transformer", model)
    options = {"weights": tmp_path / "weights", "chunk_frames": 4}
    with pytest.raises(ConfigError, match="can't read clips in chunks of 4 frames: it needs cell lstm, gru"):
        predict(tmp_path / "transformer", ["x.mp4"], **options)
