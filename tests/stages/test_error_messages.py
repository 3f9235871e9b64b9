"""The mismatches that people hit: each is one message with what was found, what is needed, and the remedy."""

# ruff: noqa: E501 - messages are compared as one piece

import re

import pytest
import torch

from pipeline.errors import DamagedError, ManifestError, ShapeError, StoreError
from pipeline.learn.models import MODEL_CLASSES, build_model
from pipeline.learn.tasks import TASK_CLASSES
from pipeline.manifest import Clip, FrameLabel
from pipeline.settings.model import ModelConfig
from pipeline.settings.tasks import TaskConfig
from pipeline.store import open_view
from stages import console
from stages.remedies import REMEDIES, remedy_of
from tests.support.features import make_view
from tests.support.toy import make_clip

MAP_SHAPE = (512, 7, 7)
READS = "the model reads (B, T, C, H, W) = (clips, frames, 512, 7, 7)"


@pytest.mark.parametrize("name", MODEL_CLASSES)
@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        pytest.param(
            (2, 3, 256, 14, 14),
            [3, 3],
            f"Maps have shape (2, 3, 256, 14, 14), but {READS}. They are of another tap, pooling or frame size"
            " than those that the model was trained on.",
            id="the feature size of another tap",
        ),
        pytest.param(
            (2, 3, 512, 1, 1),
            [3, 3],
            f"Maps have shape (2, 3, 512, 1, 1), but {READS}. They are of another tap, pooling or frame size"
            " than those that the model was trained on.",
            id="pooled features where maps are expected",
        ),
        pytest.param(
            (2, 3, 7, 7, 512),
            [3, 3],
            f"Maps have shape (2, 3, 7, 7, 512), but {READS}. The channels come last: give maps.movedim(-1, 2).",
            id="channels last",
        ),
        pytest.param(
            (2, 3, 3, 224, 224),
            [3, 3],
            f"Maps have shape (2, 3, 3, 224, 224), but {READS}. These are frames, not maps of a network: give"
            " them to EndToEnd, which computes maps.",
            id="frames where maps are expected",
        ),
        pytest.param(
            (2, 0, 512, 7, 7),
            None,
            f"Maps have shape (2, 0, 512, 7, 7), but {READS}, at least one of each: a sequence has at least one"
            " frame. Leave the clip out, or keep more of its frames.",
            id="no frames at all",
        ),
        pytest.param(
            (2, 512, 7, 7),
            [1, 1],
            f"Maps have shape (2, 512, 7, 7), but {READS}. Add the time axis: maps[:, None] for images (clips of"
            " one frame), maps[None] for one clip.",
            id="a missing time axis",
        ),
        pytest.param(
            (512, 7, 7),
            [1],
            f"Maps have shape (512, 7, 7), but {READS}. This is one image's map: give it as a clip of one frame,"
            " maps[None, None].",
            id="an image where a clip is expected",
        ),
        pytest.param(
            (2, 25088),
            [1, 1],
            f"Maps have shape (2, 25088), but {READS}. Give each frame's map as channels, height and width:"
            " the model itself pools and flattens maps.",
            id="vectors that were flattened before",
        ),
        pytest.param(
            (2, 3, 512, 7, 7),
            [3, 4],
            "Lengths go up to 4, but maps (2, 3, 512, 7, 7) have T = 3 frames: lengths count frames, not steps of"
            " the scan.",
            id="lengths beyond T",
        ),
        pytest.param(
            (2, 3, 512, 7, 7),
            [3.0, 2.0],
            "Lengths are torch.float32, but count frames: give integers (B,).",
            id="lengths that are no integers",
        ),
        pytest.param(
            (2, 3, 512, 7, 7),
            [3],
            "Lengths have shape (1,), but maps (2, 3, 512, 7, 7) need (B,) = (2,): one number of frames a clip.",
            id="lengths of another batch",
        ),
        pytest.param(
            (2, 3, 512, 7, 7),
            [3, 0],
            "Clip 1 of the batch has length 0: a sequence has at least one frame. Leave the clip out, or"
            " keep more of its frames.",
            id="an empty sequence",
        ),
    ],
)
def test_tensors_of_another_shape(name, shape, lengths, message):
    config = ModelConfig(projection=2, hidden_size=2, pooling="avg")
    model = build_model(name, config, map_shapes=[MAP_SHAPE], num_outputs=2)
    with pytest.raises(ShapeError) as error:
        model(torch.zeros(shape), None if lengths is None else torch.tensor(lengths))
    assert str(error.value) == message


def test_a_tap_that_was_not_extracted(tmp_path):
    features = make_view(tmp_path, {"c0": 2}).parent
    with pytest.raises(StoreError) as error:
        open_view(features / "layer3")
    assert str(error.value) == f"No features at {features / 'layer3'}. There are those of layer4."
    assert remedy_of(error.value) == (
        "In params.yaml, set train.tap to a tap that is there, or add this one to extract.taps and run `dvc repro`."
    )


def test_no_features_at_all(tmp_path):
    with pytest.raises(StoreError) as error:
        open_view(tmp_path / "features" / "layer3")
    assert str(error.value) == f"No features at {tmp_path / 'features' / 'layer3'}."
    assert remedy_of(error.value) == "Run `dvc repro extract` to make them, or `dvc pull`."


def test_a_stage_prints_the_facts_of_an_error_and_then_its_remedy(tmp_path, capsys):
    with pytest.raises(SystemExit, match="1"):
        console.run(lambda: open_view(tmp_path / "features" / "layer3"))
    assert capsys.readouterr().err == (
        f"error: No features at {tmp_path / 'features' / 'layer3'}."
        " Run `dvc repro extract` to make them, or `dvc pull`.\n"
    )


def test_the_remedy_of_an_error_is_that_of_its_nearest_parent_with_one():
    class ShardError(DamagedError):
        pass

    assert remedy_of(ShardError("x")) == REMEDIES[DamagedError]
    assert remedy_of(StoreError("x")) is None


def test_a_label_that_the_train_split_does_not_have():
    task = TASK_CLASSES["classification"].from_clips(
        [make_clip("a", label="up"), make_clip("b", label="down")], TaskConfig()
    )
    with pytest.raises(ManifestError) as error:
        task.check([make_clip("v", label="left", split="val")])
    assert str(error.value) == (
        "Clip 'v' has label 'left', which the train split does not have. Known: down, up. Correct the manifest, or"
        " move such clips to the train split."
    )


def complete(clip_id: str, **without: object) -> Clip:
    """A clip with every target, but for those that are given."""
    targets = {
        "label": f"label {clip_id}",
        "values": (1.0,),
        "frame_labels": (FrameLabel(0.0, 1.0, f"label {clip_id}"),),
        "captions": ("a b",),
    }
    return make_clip(clip_id, **{**targets, **without})


@pytest.mark.parametrize(
    ("task", "column", "without"),
    [
        ("classification", "label", {"label": None}),
        ("frame_labels", "frame_labels", {"frame_labels": ()}),
        ("regression", "value", {"values": ()}),
    ],
)
def test_a_target_column_that_the_task_needs(task, column, without):
    message = (
        f"Clip 'b' has no {column}: the task {task!r} needs one for every clip. Fill the manifest's column"
        f" {column!r}, or choose another task."
    )
    with pytest.raises(ManifestError, match=re.escape(message)):
        TASK_CLASSES[task].from_clips([complete("a"), complete("b", **without)], TaskConfig())
    fitted = TASK_CLASSES[task].from_clips([complete("a"), complete("b")], TaskConfig())
    with pytest.raises(ManifestError, match=re.escape(message)):
        fitted.check([complete("a"), complete("b", **without)])


def test_clips_with_other_numbers_of_values():
    clips = [make_clip("a", values=(1.0, 2.0)), make_clip("b", values=(1.0,))]
    with pytest.raises(ManifestError) as error:
        TASK_CLASSES["regression"].from_clips(clips, TaskConfig())
    assert str(error.value) == (
        "Clip 'b' has 1 values, and others have 2: every clip needs the same number. Correct the manifest's column 'value'."
    )


def test_many_problems_are_counted_and_the_first_are_named():
    clips = [make_clip(f"c{i}") for i in range(9)]
    with pytest.raises(ManifestError) as error:
        TASK_CLASSES["classification"].from_clips(clips, TaskConfig())
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        *[f"Clip 'c{i}' has no label" for i in range(3)],
        "And 6 more.",
    ]
