"""`stages.store dump`: what other programs get, and that `import` reads it back to equal bits."""

import shutil
from pathlib import Path

import numpy as np
import pytest

import stages.store
from pipeline.manifest import Clip, FrameLabel, read_manifest, write_manifest
from pipeline.store import open_view
from pipeline.store.upkeep.dump import FORMATS
from tests.support.features import (
    fill_maps,
    make_contract,
    make_journal,
    publish_clips,
)
from tests.support.in_process import run_main

FRAMES = {"a/b": 7, "50%": 12, ".c": 40, ".c.seconds": 9}
LABELS = {
    "a/b": (FrameLabel(0.0, 0.1, "cut"), FrameLabel(0.1, 0.28, "stir")),
    "50%": (FrameLabel(0.0, 0.2, "stir"), FrameLabel(0.2, 0.48, "cut")),
    ".c": (FrameLabel(0.0, 1.6, "cut"),),
    ".c.seconds": (FrameLabel(0.0, 0.36, "stir"),),
}
SPLITS = dict(zip(FRAMES, ("train", "train", "val", "test"), strict=True))


def store(folder: Path, *arguments: str, succeeds: bool = True) -> str:
    status, stdout, stderr = run_main(stages.store.main, folder, *arguments)
    assert (status == 0) == succeeds, stdout + stderr
    return stdout + stderr


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Vectors, as pooled maps are, and a manifest."""
    contract = make_contract(dtype="float16")
    journal, contract, layout = make_journal(tmp_path / "journal", contract=contract, row_shape=(6, 1, 1))
    vectors = {
        name: np.random.default_rng(number).standard_normal((count, 6, 1, 1)).astype(np.float16)
        for number, (name, count) in enumerate(FRAMES.items())
    }
    fill_maps(journal, contract, layout, vectors)
    write_manifest(
        tmp_path / "all.csv",
        [Clip(name, (f"{name}.mp4",), SPLITS[name], frame_labels=LABELS[name]) for name in FRAMES],
    )
    return publish_clips(journal, contract, layout, list(FRAMES), tmp_path / "features")


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_dumped_is_imported_to_equal_bits_labels_and_splits(
    tmp_path: Path, features: Path, form: str
) -> None:
    out = "out.h5" if form == "hdf5" else "out"
    arguments = ("features/layer4", "--out", out, "--format", form, "--manifest", "all.csv")
    assert "4 clips are in" in store(tmp_path, "dump", *arguments)
    store(tmp_path, "import", out, "--name", "back", "--manifest", "back.csv")
    with open_view(features) as view, open_view(tmp_path / "imported/back/back") as back:
        assert back.clip_ids() == view.clip_ids()
        assert (back.map_shape, back.dtype) == (view.map_shape, view.dtype)
        for name in FRAMES:
            np.testing.assert_array_equal(back.read(name), view.read(name))
            np.testing.assert_array_equal(back.frame_seconds(name), view.frame_seconds(name))
            clips = {clip.clip_id: clip for clip in read_manifest(tmp_path / "back.csv")}
            assert clips[name].split == SPLITS[name]
            found = [_label_at(clips[name], time) for time in view.frame_seconds(name)]
            original = Clip(name, (), "", frame_labels=LABELS[name])
            assert found == [_label_at(original, time) for time in view.frame_seconds(name)]


@pytest.mark.usefixtures("features")
def test_features_are_compared_with_the_only_ones_in_a_folder_whatever_their_name(tmp_path: Path) -> None:
    store(tmp_path, "dump", "features/layer4", "--out", "out", "--manifest", "all.csv")
    store(tmp_path, "import", "out", "--name", "back", "--axes=TCHW")
    arguments = ("check", "features/layer4", "--against", "imported/back", "--clips", "2")
    assert "Equal within the tolerance, 0.001." in store(tmp_path, *arguments)
    for name in ("one", "two"):
        shutil.copytree(tmp_path / "imported/back/back", tmp_path / "both" / name)
    message = "--against: name one of both/one, both/two."
    assert message in store(tmp_path, *arguments[:3], "both", succeeds=False)


def _label_at(clip: Clip, seconds: float) -> str:
    (label,) = (each.label for each in clip.frame_labels if each.start_seconds <= seconds < each.end_seconds)
    return label


@pytest.mark.usefixtures("features")
def test_clips_that_are_named_twice_are_dumped_once_and_hdf5_needs_a_name_that_import_knows(
    tmp_path: Path,
) -> None:
    arguments = ("features/layer4", ".c", ".c", "--manifest", "all.csv", "--format", "hdf5")
    assert "1 clips are in out.h5" in store(tmp_path, "dump", *arguments, "--out", "out.h5")
    message = "--out out: a file of HDF5 ends in .h5 or .hdf5."
    assert message in store(tmp_path, "dump", *arguments, "--out", "out", succeeds=False)


@pytest.mark.usefixtures("features")
def test_labels_that_make_no_manifest_are_refused_before_anything_is_imported(tmp_path: Path) -> None:
    store(tmp_path, "dump", "features/layer4", ".c", "--out", "out", "--manifest", "all.csv")
    message = "no clip has split 'train'"
    assert message in store(tmp_path, "import", "out", "--name", "back", "--axes=TCHW", succeeds=False)
    assert not (tmp_path / "imported").exists()


@pytest.mark.usefixtures("features")
def test_a_layout_without_labels_for_each_clip_is_refused(tmp_path: Path) -> None:
    manifest = read_manifest(tmp_path / "all.csv")
    write_manifest(tmp_path / "some.csv", [clip for clip in manifest if clip.clip_id != "a/b"])
    arguments = ("features/layer4", "--out", "out", "--format", "mstcn", "--manifest", "some.csv")
    message = "1 clips have features, and the manifest does not have them: a/b."
    assert message in store(tmp_path, "dump", *arguments, succeeds=False)
    assert not (tmp_path / "out").exists()
