"""`python -m stages.manifest`, run as users run it."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline.manifest import Clip, check_sources, read_manifest
from tests.media import write_image, write_image_folder


def run(*arguments: str | Path, cwd: Path, succeeds: bool = True) -> str:
    command = [sys.executable, "-m", "stages.manifest", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == succeeds, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if succeeds else done.stderr


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    names = [f"{label}/{i:02d}.mp4" for label in ("jump", "run") for i in range(20)]
    return touch(tmp_path / "videos", *names)


def test_a_folder_tree_becomes_a_manifest_split_class_by_class(videos: Path, tmp_path: Path) -> None:
    output = run("videos", "--out", "manifests/mine.csv", cwd=tmp_path)
    manifest = read_manifest(tmp_path / "manifests/mine.csv")
    check_sources(manifest, root=videos)
    counts = Counter((clip.label, clip.split) for clip in manifest)
    for label in ("jump", "run"):
        assert [counts[label, split] for split in ("train", "val", "test")] == [14, 3, 3]
    assert next(iter(manifest)) == Clip(
        clip_id="jump/00", sources=("jump/00.mp4",), split=next(iter(manifest)).split, label="jump"
    )
    assert ["jump", "14", "3", "3"] in [line.split() for line in output.splitlines()]
    parameters = yaml.safe_load(output[output.index("corpus:") :])
    assert parameters == {"corpus": {"manifest": "manifests/mine.csv", "root": str(videos)}}


def test_the_split_depends_on_paths_and_seed_alone(videos: Path, tmp_path: Path) -> None:
    def splits(*options: str) -> dict[str, str]:
        run("videos", "--out", "mine.csv", *options, cwd=tmp_path)
        return {clip.clip_id: clip.split for clip in read_manifest(tmp_path / "mine.csv")}

    first = splits()
    assert splits() == first
    assert splits("--seed", "1") != first
    touch(videos, *(f"walk/{i}.mp4" for i in range(5)))  # another class leaves the others as they were
    assert {name: split for name, split in splits().items() if "walk" not in name} == first
    assert Counter(splits("--split", "0.5", "0.25", "0.25").values()) == {"train": 23, "val": 11, "test": 11}


def test_small_classes_are_in_every_split(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a/1.mp4", "a/2.mp4", "a/3.mp4", "b/1.mp4")
    run("videos", "--out", "mine.csv", cwd=tmp_path)
    clips = list(read_manifest(tmp_path / "mine.csv"))
    assert sorted(clip.split for clip in clips if clip.label == "a") == ["test", "train", "val"]
    assert [clip.split for clip in clips if clip.label == "b"] == ["train"]


def test_train_val_and_test_folders_are_the_splits(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "train/a/1.mp4", "val/a/2.mp4", "test/b/3.mp4", "README.txt")
    run("videos", "--out", "mine.parquet", cwd=tmp_path)
    assert list(read_manifest(tmp_path / "mine.parquet")) == [
        Clip(clip_id="train/a/1", sources=("train/a/1.mp4",), split="train", label="a"),
        Clip(clip_id="val/a/2", sources=("val/a/2.mp4",), split="val", label="a"),
        Clip(clip_id="test/b/3", sources=("test/b/3.mp4",), split="test", label="b"),
    ]


def test_images_and_folders_of_images_are_clips_and_other_files_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_image(folder / "a/one.jpg", index=1)
    write_image(folder / "a/one.png", index=1)
    write_image_folder(folder / "b/many", num_images=2)
    touch(folder, "a/.hidden.mp4", "a/notes.txt", "b/empty/notes.txt", "b/last.webm")
    run("corpus", "--out", "mine.csv", "--split", "0.4", "0.3", "0.3", cwd=tmp_path, succeeds=False)
    write_image(folder / "a/two.png", index=2)
    run("corpus", "--out", "mine.csv", cwd=tmp_path)
    clips = {clip.clip_id: clip.sources for clip in read_manifest(tmp_path / "mine.csv")}
    assert clips == {
        "a/one.jpg": ("a/one.jpg",),
        "a/one.png": ("a/one.png",),
        "a/two": ("a/two.png",),
        "b/last": ("b/last.webm",),
        "b/many": ("b/many",),
    }


def test_a_labels_file_names_clips_and_classes(tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(6)))
    (tmp_path / "labels.csv").write_text("source,label\n" + "".join(f"{i}.mp4,x{i % 2}\n" for i in range(6)))
    run("videos", "--out", "mine.csv", "--labels", "labels.csv", cwd=tmp_path)
    labels = {clip.clip_id: clip.label for clip in read_manifest(tmp_path / "mine.csv")}
    assert labels == {str(i): f"x{i % 2}" for i in range(6)}


def test_bad_input_gives_one_clear_message(videos: Path, tmp_path: Path) -> None:
    def message(*arguments: str) -> str:
        return run(*arguments, cwd=tmp_path, succeeds=False)

    assert "nowhere is not a folder" in message("nowhere", "--out", "mine.csv")
    assert "a .csv or a .parquet file" in message("videos", "--out", "mine.txt")
    assert "three shares above 0" in message("videos", "--out", "mine.csv", "--split", "0.5", "0.5", "0")
    touch(videos, "loose.mp4")
    assert "loose.mp4 lies in no class folder" in message("videos", "--out", "mine.csv")
    touch(tmp_path / "empty", "a/notes.txt")
    assert "empty has no clips" in message("empty", "--out", "mine.csv")
    (tmp_path / "labels.csv").write_text(
        "source,label\njump/00.mp4,\nnone.mp4,x\njump/01.mp4,x\njump/01.mp4,y\n"
    )
    problems = message("videos", "--out", "mine.csv", "--labels", "labels.csv")
    assert "3 problem" in problems
    assert "line 2: needs a source and a label" in problems
    assert "line 3: videos/none.mp4 does not exist" in problems
    assert "line 5: jump/01.mp4 is there twice" in problems
    assert not (tmp_path / "mine.csv").exists()
