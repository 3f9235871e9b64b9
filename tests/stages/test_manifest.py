"""`python -m stages.manifest`: folder trees, miniatures of the official corpora, and a look at every clip."""

import csv
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline.corpora.splits import carve_val
from pipeline.manifest import Clip, check_sources, read_manifest, write_manifest
from tests.support.builders import Builder, link, touch
from tests.support.media import write_image, write_image_folder, write_video


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Builder:
    return Builder(tmp_path, monkeypatch, capsys)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    names = [f"{label}/{i:02d}.mp4" for label in ("jump", "run") for i in range(20)]
    return touch(tmp_path / "videos", *names)


def test_a_folder_tree_becomes_a_manifest_split_class_by_class(
    run: Builder, videos: Path, tmp_path: Path
) -> None:
    output = run("folder", "videos", "--out", "manifests/mine.csv")
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


def test_the_split_depends_on_paths_and_seed_alone(run: Builder, videos: Path, tmp_path: Path) -> None:
    def splits(*options: str) -> dict[str, str]:
        run("folder", "videos", "--out", "mine.csv", "--fresh", *options)
        return {clip.clip_id: clip.split for clip in read_manifest(tmp_path / "mine.csv")}

    first = splits()
    assert splits() == first
    assert splits("--seed", "1") != first
    touch(videos, *(f"walk/{i}.mp4" for i in range(5)))  # another class leaves the others as they were
    assert {name: split for name, split in splits().items() if "walk" not in name} == first
    assert Counter(splits("--split", "0.5", "0.25", "0.25").values()) == {"train": 23, "val": 11, "test": 11}


def test_small_classes_are_in_every_split(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a/1.mp4", "a/2.mp4", "a/3.mp4", "b/1.mp4")
    run("folder", "videos", "--out", "mine.csv")
    clips = list(read_manifest(tmp_path / "mine.csv"))
    assert sorted(clip.split for clip in clips if clip.label == "a") == ["test", "train", "val"]
    assert [clip.split for clip in clips if clip.label == "b"] == ["train"]


def test_train_val_and_test_folders_are_the_splits(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", "train/a/1.mp4", "val/a/2.mp4", "test/b/3.mp4", "README.txt")
    run("folder", "videos", "--out", "mine.parquet")
    assert list(read_manifest(tmp_path / "mine.parquet")) == [
        Clip(clip_id="train/a/1", sources=("train/a/1.mp4",), split="train", label="a"),
        Clip(clip_id="val/a/2", sources=("val/a/2.mp4",), split="val", label="a"),
        Clip(clip_id="test/b/3", sources=("test/b/3.mp4",), split="test", label="b"),
    ]


def test_images_and_folders_of_images_are_clips_and_other_files_are_not(run: Builder, tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_image(folder / "a/one.jpg", index=1)
    write_image(folder / "a/one.png", index=1)
    write_image_folder(folder / "b/many", num_images=2)
    touch(folder, "a/.hidden.mp4", "a/notes.txt", "b/empty/notes.txt", "b/last.webm")
    run("folder", "corpus", "--out", "mine.csv", "--split", "0.4", "0.3", "0.3", succeeds=False)
    write_image(folder / "a/two.png", index=2)
    run("folder", "corpus", "--out", "mine.csv")
    clips = {clip.clip_id: clip.sources for clip in read_manifest(tmp_path / "mine.csv")}
    assert clips == {
        "a/one.jpg": ("a/one.jpg",),
        "a/one.png": ("a/one.png",),
        "a/two": ("a/two.png",),
        "b/last": ("b/last.webm",),
        "b/many": ("b/many",),
    }


def test_a_labels_file_names_clips_and_classes(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(6)))
    (tmp_path / "labels.csv").write_text("source,label\n" + "".join(f"{i}.mp4,x{i % 2}\n" for i in range(6)))
    run("folder", "videos", "--out", "mine.csv", "--labels", "labels.csv")
    labels = {clip.clip_id: clip.label for clip in read_manifest(tmp_path / "mine.csv")}
    assert labels == {str(i): f"x{i % 2}" for i in range(6)}


def test_bad_input_gives_one_clear_message(run: Builder, videos: Path, tmp_path: Path) -> None:
    def message(*arguments: str) -> str:
        return run("folder", *arguments, succeeds=False)

    assert "nowhere is not a folder" in message("nowhere", "--out", "mine.csv")
    assert "a .csv or a .parquet file" in message("videos", "--out", "mine.txt")
    assert "0 is not between 0 and 1" in message("videos", "--out", "mine.csv", "--split", "0.5", "0.5", "0")
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
    assert "line 5: jump/01.mp4 is repeated" in problems
    assert not (tmp_path / "mine.csv").exists()


def clips_in(path: Path) -> dict[str, Clip]:
    return {clip.clip_id: clip for clip in read_manifest(path)}


def splits_by_group(clips: Iterable[Clip]) -> dict[str | None, set[str]]:
    groups: dict[str | None, set[str]] = {}
    for clip in clips:
        groups.setdefault(clip.group, set()).add(clip.split)
    return groups


def test_groups_are_named_by_a_pattern_of_the_path_and_never_straddle_splits(
    run: Builder, tmp_path: Path
) -> None:
    names = [f"{c}/subject{s:02d}_{i}.mp4" for c in ("jump", "run") for s in range(10) for i in range(3)]
    touch(tmp_path / "videos", *names)
    arguments = ("folder", "videos", "--out", "mine.csv", "--fresh", "--group")
    for pattern, groups in (
        (r"(subject\d+)_", {f"subject{s:02d}" for s in range(10)}),
        (r"\w+/subject\d", {"jump/subject0", "run/subject0"}),
        (r"/([a-z]*)(\d*)", {"subject"}),  # one group in all
    ):
        output = run(*arguments, pattern, succeeds=len(groups) > 2)
        if len(groups) > 2:
            clips = clips_in(tmp_path / "mine.csv").values()
            assert splits_by_group(clips).keys() == groups
            assert all(len(splits) == 1 for splits in splits_by_group(clips).values())
            assert Counter(clip.split for clip in clips) == {"train": 36, "val": 12, "test": 12}
        else:  # at most one group a class
            assert output == (
                "mine.csv: 2 problems\n  no clip has split 'test'. Each of train, val, test needs some.\n"
                "  no clip has split 'val'. Each of train, val, test needs some.\n"
                f"These are {len(groups)} groups or single clips: a class needs three to be in all splits."
            )
    assert "'_4' gives no group for 60 of 60 clips: jump/subject00_0.mp4" in run(
        *arguments, "_4", succeeds=False
    )
    assert "no column of --labels, and no pattern" in run(*arguments, "(", succeeds=False)


def test_large_groups_leave_no_split_empty(run: Builder, tmp_path: Path) -> None:
    touch(
        tmp_path / "videos", *(f"a/{g}{i}.mp4" for g, n in (("x", 9), ("y", 20), ("z", 5)) for i in range(n))
    )
    run("folder", "videos", "--out", "mine.csv", "--group", "[xyz]")
    groups = splits_by_group(clips_in(tmp_path / "mine.csv").values())
    assert groups["y"] == {"train"}
    assert groups["x"] | groups["z"] == {"val", "test"}


def test_a_group_may_be_a_column_of_the_labels(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(30)))
    rows = "".join(f"{i}.mp4,{'ab'[i % 2]},p{i // 5}\n" for i in range(30))
    (tmp_path / "labels.csv").write_text(f"source,label,person\n{rows}")
    run("folder", "videos", "--labels", "labels.csv", "--group", "person", "--out", "mine.csv")
    clips = clips_in(tmp_path / "mine.csv")
    assert {name: clip.group for name, clip in clips.items()} == {str(i): f"p{i // 5}" for i in range(30)}
    assert all(len(splits) == 1 for splits in splits_by_group(clips.values()).values())
    assert {clip.split for clip in clips.values()} == {"train", "val", "test"}
    message = run("folder", "videos", "--labels", "labels.csv", "--out", "mine.csv", succeeds=False)
    assert "unknown column 'person'" in message


def test_columns_of_ones_own_are_carried_from_the_labels_and_kept(
    run: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(9)))
    labels = tmp_path / "labels.csv"
    labels.write_text("source,label,meta_subject\n" + "".join(f"{i}.mp4,x,s{i // 3}\n" for i in range(9)))
    arguments = ("folder", "videos", "--labels", "labels.csv", "--out", "mine.csv")
    run(*arguments, "--group", "meta_subject")
    clips = clips_in(tmp_path / "mine.csv")
    assert [(clips["4"].group, clips["4"].meta)] == [("s1", {"subject": "s1"})]
    write_manifest(
        tmp_path / "mine.csv", [replace(clip, meta={**clip.meta, "site": "A"}) for clip in clips.values()]
    )
    labels.write_text(labels.read_text().replace("8.mp4,x,s2", "8.mp4,x,s3"))
    run(*arguments)
    after = clips_in(tmp_path / "mine.csv")
    assert after["4"] == replace(clips["4"], meta={"subject": "s1", "site": "A"})
    assert after["8"].meta == {"subject": "s3", "site": "A"}
    assert "meta_subject of 8 ('s2' by 's3')" in caplog.text


def test_clips_of_one_file_are_one_group(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(8)))
    rows = "".join(f"{i}.mp4,x,{start},{start + 3},\n" for i in range(8) for start in (0, 1, 2.5))
    (tmp_path / "labels.csv").write_text(f"source,label,start_seconds,end_seconds,group\n{rows}")
    run("folder", "videos", "--labels", "labels.csv", "--out", "mine.csv")
    clips = clips_in(tmp_path / "mine.csv")
    assert list(clips)[:3] == ["0_0-3", "0_1-4", "0_2.5-5.5"]
    assert all(clip.group == clip.sources[0] for clip in clips.values())
    assert all(len(splits) == 1 for splits in splits_by_group(clips.values()).values())
    (tmp_path / "labels.csv").write_text(
        f"source,label,start_seconds,end_seconds,group\n{rows}0.mp4,x,7,8,ann\n0.mp4,x,8,9,bob\n"
    )
    message = run("folder", "videos", "--labels", "labels.csv", "--out", "new.csv", succeeds=False)
    assert message == "Clips of one file are one group, and these have several:\n  0.mp4: ann, bob"


def test_splits_of_the_labels_that_tear_a_file_are_one_message(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(3)))
    rows = [f"{i}.mp4,x,{s},{split}" for i in range(3) for s, split in enumerate(("train", "val", "test"))]
    (tmp_path / "labels.csv").write_text("\n".join(["source,label,start_seconds,split", *rows]))
    message = run("folder", "videos", "--labels", "labels.csv", "--out", "mine.csv", succeeds=False)
    assert message.startswith(
        "mine.csv: 1 problem\n"
        "  group '0.mp4' is in train (row 2) and val (row 3) and test (row 4); group '1.mp4' is in train"
    )


def test_the_rate_of_images_is_given_or_said(
    run: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for number in range(3):
        write_image_folder(tmp_path / f"videos/a/frames{number}", num_images=2)
        write_image(tmp_path / f"videos/a/{number}.png", index=1)
        touch(tmp_path, f"videos/a/v{number}.mp4")
    run("folder", "videos", "--out", "mine.csv")
    assert "3 clips are images in sequence, taken as 1 image a second" in caplog.text
    caplog.clear()
    run("folder", "videos", "--out", "mine.csv", "--image-fps", "25")
    rates = {name: clip.image_fps for name, clip in clips_in(tmp_path / "mine.csv").items()}
    assert rates == {
        **{f"a/frames{number}": 25.0 for number in range(3)},
        **{f"a/{name}": 1.0 for name in ("0", "1", "2", "v0", "v1", "v2")},
    }
    run("folder", "videos", "--out", "mine.csv")  # the rate stays
    assert clips_in(tmp_path / "mine.csv")["a/frames0"].image_fps == 25.0
    assert "images in sequence" not in caplog.text
    assert "--image-fps: 0 is not between 0 and inf" in run(
        "folder", "videos", "--out", "mine.csv", "--image-fps", "0", succeeds=False
    )


def test_building_again_keeps_splits_and_hand_made_columns(
    run: Builder, videos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "mine.csv"
    run("folder", "videos", "--out", "mine.csv")
    before = clips_in(out)
    by_hand = {
        "jump/00": [replace(before["jump/00"], captions=("a girl jumps",), values=(1.5,))],
        "jump/01": [replace(before["jump/01"], clip_id="first", end_seconds=1.0),
                    replace(before["jump/01"], clip_id="second", start_seconds=1.0)],
        "jump/02": [replace(before["jump/02"], label="hop")],
        "jump/03": [replace(before["jump/03"], clip_id="renamed", group="ann")],
    }  # fmt: skip
    write_manifest(out, [row for name, clip in before.items() for row in by_hand.get(name, [clip])])
    touch(videos, "run/new.mp4", "walk/0.mp4")
    (videos / "run/00.mp4").rename(videos / "run/00.mkv")  # converted
    (videos / "run/01.mp4").unlink()
    (videos / "run/02.mp4").unlink()
    link(videos / "run/02.mp4", ".git/annex/objects/x")

    output = run("folder", "videos", "--out", "mine.csv", "--split", "0.2", "0.4", "0.4", "--seed", "7")
    after = clips_in(out)
    assert after.pop("jump/00") == by_hand["jump/00"][0]
    for row in by_hand["jump/01"]:
        assert after.pop(row.clip_id) == replace(row, group="jump/01.mp4")
    assert after.pop("jump/02") == before["jump/02"]  # the folder says jump
    assert "(1): label of jump/02 ('hop' by 'jump')" in caplog.text
    assert after.pop("renamed") == by_hand["jump/03"][0]
    assert after.pop("run/00") == replace(before["run/00"], sources=("run/00.mkv",))
    assert "no longer there (1): run/01." in caplog.text
    assert {after.pop("run/new").label, after.pop("walk/0").label} == {"run", "walk"}
    assert after == {name: before[name] for name in after}
    assert "run/02" in after  # not fetched, and not gone
    assert len(after) == 34
    assert "mine.csv had 40 of the clips: they keep their splits and other columns" in output
    assert "2 clips are new" in output


def test_new_clips_join_their_group_and_fill_what_the_shares_lack(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"a/s{s}_{i}.mp4" for s in range(8) for i in range(2)))
    arguments = ("folder", "videos", "--out", "mine.csv", "--group", r"s\d+")
    run(*arguments)
    before = clips_in(tmp_path / "mine.csv")
    touch(tmp_path / "videos", *(f"a/s{s}_{i}.mp4" for s in range(12) for i in range(3)))
    run(*arguments)
    after = clips_in(tmp_path / "mine.csv")
    assert all(after[name].split == clip.split for name, clip in before.items())
    assert all(len(splits) == 1 for splits in splits_by_group(after.values()).values())
    assert Counter(clip.split for clip in after.values()) == {"train": 24, "val": 6, "test": 6}


def test_a_labels_csv_that_changes_takes_what_was_filled_in_with_it(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(6)))
    labels = tmp_path / "labels.csv"
    header = "source,label,start_seconds,end_seconds\n"
    labels.write_text(header + "".join(f"{i}.mp4,x,{s},{s + 1}\n" for i in range(6) for s in (0, 1)))
    arguments = ("folder", "videos", "--labels", "labels.csv", "--out", "mine.csv")
    run(*arguments)
    clips = clips_in(tmp_path / "mine.csv")
    filled = [replace(clip, captions=(name,)) for name, clip in clips.items()]
    write_manifest(tmp_path / "mine.csv", filled)
    labels.write_text(header + "".join(f"{i}.mp4,y,{s},{s + 1}\n" for i in range(6) for s in (1, 2)))
    run(*arguments)
    after = clips_in(tmp_path / "mine.csv")
    assert {name: clip.captions for name, clip in after.items()} == {
        f"{i}_{s}-{s + 1}": (f"{i}_{s}-{s + 1}",) if s == 1 else () for i in range(6) for s in (1, 2)
    }
    assert all(after[name].split == clip.split for name, clip in clips.items() if name in after)


def test_a_manifest_that_cannot_be_kept_is_not_overwritten(
    run: Builder, videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.csv"
    out.write_text("clip_id,source,split,mine\na,a,train,1\n")
    message = run("folder", "videos", "--out", "mine.csv", succeeds=False)
    assert message.startswith("mine.csv is there already, but its splits and columns can't be kept")
    assert message.endswith("--fresh keeps nothing of this manifest.")
    assert "unknown column 'mine'" in message
    assert out.read_text().startswith("clip_id,source,split,mine")
    run("folder", "videos", "--out", "mine.csv", "--fresh")
    before = out.read_bytes()
    message = run("folder", "videos", "--out", "mine.csv", "--group", r"\d\d", succeeds=False)
    assert "A group stays in one split" in message
    assert message.endswith("its splits and groups were kept. --fresh keeps nothing of this manifest.")
    assert out.read_bytes() == before
    run("folder", str(videos), "--out", "mine.csv", "--fresh", "--group", r"\d\d")
    assert len(splits_by_group(clips_in(out).values())) == 20


def test_a_manifest_whose_splits_tear_a_group_is_told_the_way_out(run: Builder, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("corpus: {manifest: mine.csv, root: corpus}\nextract: {}\n")
    (tmp_path / "torn.csv").write_text(
        "clip_id,source,split,group\na,a.mp4,train,g\nb,b.mp4,val,g\nc,c.mp4,test,\n"
    )
    message = run("probe", "--manifest", "torn.csv", "--root", ".", succeeds=False)
    assert "group 'g' is in train (row 2) and val (row 3). A group stays in one split" in message
    assert message.endswith("`python -m stages.manifest folder --group` makes splits of whole groups.")


def test_the_root_is_printed_as_yaml(run: Builder, tmp_path: Path) -> None:
    root = touch(tmp_path / "my: videos # é", "a/1.mp4", "a/2.mp4", "a/3.mp4")
    output = run("folder", root, "--out", "mine.csv")
    assert yaml.safe_load(output[output.index("corpus:") :])["corpus"]["root"] == str(root)


def test_a_root_that_is_not_utf_8_is_refused(run: Builder, tmp_path: Path) -> None:
    root = touch(tmp_path / os.fsdecode(b"caf\xe9"), "a/1.mp4", "a/2.mp4", "a/3.mp4")
    assert "is not UTF-8, so params.yaml can't name it. Rename it." in run(
        "folder", root, "--out", "mine.csv", succeeds=False
    )


def test_names_beyond_the_locale_are_one_message(run: Builder, tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"läuft/{i}.mp4" for i in range(3)))
    run("folder", "videos", "--out", "mine.csv")
    (tmp_path / "params.yaml").write_text(PARAMS.replace("corpus}", "videos}"))
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command, said in (
        (
            ("folder", "videos", "--out", "b.csv"),
            r"'l\xe4uft' can't be read in this locale, whose encoding is",
        ),
        (("probe",), r"videos/l\xe4uft/0.mp4 can't be named in this locale, whose encoding is ascii."),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "stages.manifest", *command],
            cwd=tmp_path,
            env=ascii_only,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 1
        assert said.encode() in done.stderr
        assert b"PYTHONUTF8=1." in done.stderr
        assert b"Traceback" not in done.stderr


def test_the_stage_runs_as_users_run_it(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a/1.mp4", "loose.mp4")
    command = [sys.executable, "-m", "stages.manifest", "folder", "videos", "--out", "mine.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: videos/loose.mp4 lies in no class folder. Move it into one. Or name clips and labels in a"
        " CSV: `python -m stages.manifest folder --labels`.\n"
    )


def ucf101(root: Path, *, num_groups: int = 25) -> Path:
    """UCF101 in its official layout: two of its classes, two clips a group, empty files. In split s the
    groups s, s + 3, ... are test (the real lists take seven in a row)."""
    lists = root / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    classes = {"ApplyEyeMakeup": "ApplyEyeMakeup", "HandstandPushups": "HandStandPushups"}  # as published
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\r\n37 HandstandPushups\r\n")
    names = {
        (label, group): [f"{label}/v_{stem}_g{group:02d}_c{clip:02d}.avi" for clip in (1, 2)]
        for label, stem in classes.items()
        for group in range(1, num_groups + 1)
    }
    touch(root / "UCF-101", *(name for pair in names.values() for name in pair))
    for split in (1, 2, 3):
        train, test = [], []
        for (label, group), pair in names.items():
            number = 1 if label == "ApplyEyeMakeup" else 37
            if group % 3 == split % 3:
                test += [f"{name}\r\n" for name in pair]
            else:
                train += [f"{name} {number}\r\n" for name in pair]
        (lists / f"trainlist{split:02d}.txt").write_text("".join(train))
        (lists / f"testlist{split:02d}.txt").write_text("".join(test))
    return root


def test_ucf101_follows_the_official_lists(run: Builder, tmp_path: Path) -> None:
    root = ucf101(tmp_path)
    output = run("ucf101", "UCF-101", "--lists", "ucfTrainTestlist", "--split", "2", "--out", "ucf.csv")
    manifest = read_manifest(tmp_path / "ucf.csv")
    check_sources(manifest, root=root / "UCF-101")
    clips = {clip.sources[0]: clip for clip in manifest}
    listed = (root / "ucfTrainTestlist/testlist02.txt").read_text().split()
    assert sorted(source for source, clip in clips.items() if clip.split == "test") == sorted(listed)
    assert len(clips) == 100
    clip = clips["HandstandPushups/v_HandStandPushups_g02_c01.avi"]
    assert clip == Clip(
        clip_id="v_HandStandPushups_g02_c01",
        sources=("HandstandPushups/v_HandStandPushups_g02_c01.avi",),
        split="test",
        group="HandstandPushups_g02",
        label="HandstandPushups",
    )
    counts = Counter((clip.label, clip.split) for clip in clips.values())
    for label in ("ApplyEyeMakeup", "HandstandPushups"):  # 8 test groups; 15 % of the other 17 are val
        assert [counts[label, split] for split in ("train", "val", "test")] == [28, 6, 16]
    assert "corpus:\n  manifest: ucf.csv\n" in output


def test_ucf101_groups_are_of_a_class_and_never_straddle_splits(run: Builder, tmp_path: Path) -> None:
    ucf101(tmp_path)
    val = {}
    for seed in ("0", "1"):
        run("ucf101", "UCF-101", "--lists", "ucfTrainTestlist", "--out", "ucf.csv", "--seed", seed)
        groups: dict[str, set[str]] = {}
        for clip in read_manifest(tmp_path / "ucf.csv"):
            groups.setdefault(clip.group or "", set()).add(clip.split)
        assert len(groups) == 50
        assert all(len(splits) == 1 for splits in groups.values())
        val[seed] = {group for group, splits in groups.items() if splits == {"val"}}
    assert val["0"] != val["1"]


def test_ucf101_may_be_folders_of_frames_and_its_lists_in_other_encodings(
    run: Builder, tmp_path: Path
) -> None:
    root = ucf101(tmp_path)
    for path in (root / "ucfTrainTestlist").iterdir():
        path.write_bytes(path.read_text().encode("utf-16" if "class" in path.name else "utf-8-sig"))
    video = root / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g05_c02.avi"
    video.unlink()
    write_image_folder(video.with_suffix(""), num_images=2)
    run("ucf101", "UCF-101", "--lists", "ucfTrainTestlist", "--out", "ucf.csv", "--image-fps", "25")
    clips = clips_in(tmp_path / "ucf.csv")
    assert len(clips) == 100
    clip = clips["v_ApplyEyeMakeup_g05_c02"]
    assert (clip.sources, clip.image_fps) == (("ApplyEyeMakeup/v_ApplyEyeMakeup_g05_c02",), 25.0)
    assert Counter(clip.image_fps for clip in clips.values()) == {1.0: 99, 25.0: 1}


def test_ucf101_may_be_converted_incomplete_and_elsewhere(
    run: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = ucf101(tmp_path)
    (root / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g05_c02.avi").unlink()
    source = root / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g04_c01.avi"
    source.rename(touch(root / "UCF-101", "flat/other.mp4") / "v_ApplyEyeMakeup_g04_c01.mp4")
    run("ucf101", "UCF-101", "--lists", "ucfTrainTestlist", "--out", "ucf.csv")
    clips = {clip.clip_id: clip for clip in read_manifest(tmp_path / "ucf.csv")}
    assert clips["v_ApplyEyeMakeup_g04_c01"].sources == ("v_ApplyEyeMakeup_g04_c01.mp4",)
    assert len(clips) == 99
    assert "1 of 100 videos of the lists are not below UCF-101" in caplog.text
    missing = (tmp_path / "ucf.missing.txt").read_text()
    assert missing == "ApplyEyeMakeup/v_ApplyEyeMakeup_g05_c02.avi\n"


def test_lists_that_are_not_ucf101s_are_refused(run: Builder, tmp_path: Path) -> None:
    root = ucf101(tmp_path, num_groups=6)
    arguments = ("ucf101", "UCF-101", "--lists", "ucfTrainTestlist", "--out", "ucf.csv")
    path = root / "ucfTrainTestlist/trainlist01.txt"
    path.write_text(path.read_text().replace(" 37", " 1"))
    assert "is not as published" in run(*arguments, succeeds=False)
    lines = path.read_text().split("\n")
    path.write_text("\n".join(["nonsense", *lines[:3], *lines[:1]]))
    message = run(*arguments, succeeds=False)
    assert "trainlist01.txt: " in message
    assert "line 1: 'nonsense' is not as published" in message
    assert "v_ApplyEyeMakeup_g02_c01.avi is already in trainlist01.txt, line 2." in message
    path.write_bytes(b"ApplyEyeMakeup/v_ApplyEyeMakeup_g02_c01.avi 1\ncaf\xe9\n")
    assert "trainlist01.txt: line 2 is not UTF-8" in run(*arguments, succeeds=False)
    path.unlink()
    assert "No ucfTrainTestlist/trainlist01.txt" in run(*arguments, succeeds=False)
    assert "None of the" not in run("ucf101", "nowhere", *arguments[2:], succeeds=False)


KINETICS_ROWS = [
    "abseiling,-_AbcdefghI,10,20,train",
    "abseiling,video000001,0,10,train",
    "abseiling,video000002,0,10,train",
    '"massaging person\'s head",video000003,123,133,train',
    '"massaging person\'s head",video000004,3,13,train',
    "abseiling,video000005,1000,1010,val",
    '"massaging person\'s head",video000006,7,17,validate',
]


def kinetics(root: Path, *, folders: bool) -> Path:
    """Kinetics in its official layout: CSVs, and files named by id and times, in class folders or flat."""
    header = "label,youtube_id,time_start,time_end,split,is_cc\n"
    for name, rows in (("train", KINETICS_ROWS[:5]), ("val", KINETICS_ROWS[5:])):
        (root / f"{name}.csv").write_text(header + "".join(f"{row},0\n" for row in rows))
    (root / "test.csv").write_text(
        "youtube_id,time_start,time_end,split\nvideo000007,5,15,test\nvideo000008,5,15,test\n"
    )
    for label, name, start, end, _ in csv.reader([*KINETICS_ROWS, ",video000008,5,15,test"]):
        folder = f"k400/{label}" if folders and label else "k400"
        touch(root, f"{folder}/{name}_{int(start):06d}_{int(end):06d}.mp4")
    return root


@pytest.mark.parametrize("folders", [True, False])
def test_kinetics_follows_its_csvs_and_reports_missing_videos(
    run: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture, folders: bool
) -> None:
    kinetics(tmp_path, folders=folders)
    run("kinetics", "k400", "--csv", "train.csv", "val.csv", "test.csv", "--out", "k400.csv")
    manifest = read_manifest(tmp_path / "k400.csv")
    check_sources(manifest, root=tmp_path / "k400")
    clips = {clip.clip_id: clip for clip in manifest}
    assert Counter(clip.split for clip in clips.values()) == {"train": 5, "val": 2, "test": 1}
    name = "-_AbcdefghI_000010_000020"
    assert clips[name] == Clip(
        clip_id=name,
        sources=(f"abseiling/{name}.mp4" if folders else f"{name}.mp4",),
        split="train",
        group="-_AbcdefghI",
        label="abseiling",
    )
    assert clips["video000006_000007_000017"].label == "massaging person's head"
    assert clips["video000008_000005_000015"].label is None
    assert "1 of 9 videos of the lists are not below k400" in caplog.text
    assert (tmp_path / "k400.missing.txt").read_text() == "video000007_000005_000015\n"


def test_kinetics_without_a_test_split_tests_on_val(run: Builder, tmp_path: Path) -> None:
    kinetics(tmp_path, folders=False)
    run("kinetics", "k400", "--csv", "train.csv", "val.csv", "--out", "k400.csv", "--val-share", "0.34")
    splits = Counter((clip.label, clip.split) for clip in read_manifest(tmp_path / "k400.csv"))
    assert splits == {
        ("abseiling", "train"): 2,
        ("abseiling", "val"): 1,
        ("abseiling", "test"): 1,
        ("massaging person's head", "train"): 1,
        ("massaging person's head", "val"): 1,
        ("massaging person's head", "test"): 1,
    }


def test_faulty_csvs_of_kinetics_are_refused_with_their_lines(run: Builder, tmp_path: Path) -> None:
    kinetics(tmp_path, folders=False)
    path = tmp_path / "bad.csv"
    arguments = ("kinetics", "k400", "--csv", "bad.csv", "--out", "k400.csv")
    path.write_text("label,youtube_id,time_start,time_end,split\na,b,c,10,train\na,b,0,10,holdout\n")
    message = run(*arguments, succeeds=False)
    assert "line 2: time_start and time_end must be numbers" in message
    assert "line 3: split 'holdout' is unknown" in message
    path.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "pick up, then put down,b,0,10,train\na,b,1\na,,0,10,train\na,b,0,inf,train\n"
    )
    message = run(*arguments, succeeds=False)
    assert "bad.csv: 4 problems" in message
    assert "line 2: 6 values, but 5 columns" in message
    assert "line 3: 3 values, but 5 columns" in message
    assert "line 4: youtube_id is empty" in message
    assert "line 5: time_start and time_end must be numbers" in message
    path.write_bytes("label,youtube_id,time_start,time_end,split\nä,b,0,10,train\n".encode("cp1252"))
    assert "bad.csv: line 2 is not UTF-8" in run(*arguments, succeeds=False)
    path.write_text("id,start\n")
    assert "the first line must name youtube_id, time_start" in run(*arguments, succeeds=False)
    path.write_text("label,youtube_id,time_start,time_end,split\na,b,0,10,train\n")
    assert "None of the 1 videos of the lists is below k400" in run(*arguments, succeeds=False)
    touch(tmp_path, "k400/again/video000001_000000_000010.mp4")
    assert "videos are there twice. Keep one" in run(*arguments, succeeds=False)


def test_rows_of_kinetics_that_are_there_twice_count_once_or_are_named(
    run: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinetics(tmp_path, folders=False)
    arguments = ("kinetics", "k400", "--csv", "train.csv", "val.csv", "test.csv", "--out", "k400.csv")
    with (tmp_path / "train.csv").open("a") as file:
        file.write("abseiling,video000001,0,10,train,0\n")
    run(*arguments)
    assert len(clips_in(tmp_path / "k400.csv")) == 8
    assert "train.csv: 1 rows are repeated and count once." in caplog.text
    with (tmp_path / "val.csv").open("a") as file:
        file.write("surfing,video000001,0,10,val,0\n")
    message = run(*arguments, succeeds=False)
    assert message == (
        "val.csv: 1 problem\n"
        "  line 4: video000001_000000_000010 has another label or split in train.csv, line 3."
    )


def test_a_video_in_several_official_splits_stays_there_without_a_group(
    run: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinetics(tmp_path, folders=False)
    with (tmp_path / "val.csv").open("a") as file:
        file.write("abseiling,video000001,50,60,val,0\n")
    touch(tmp_path, "k400/video000001_000050_000060.mp4")
    run("kinetics", "k400", "--csv", "train.csv", "val.csv", "test.csv", "--out", "k400.csv")
    clips = {clip.clip_id: clip for clip in read_manifest(tmp_path / "k400.csv")}
    pair = [clips["video000001_000000_000010"], clips["video000001_000050_000060"]]
    assert [(clip.split, clip.group) for clip in pair] == [("train", None), ("val", None)]
    assert "1 groups are in more than one split" in caplog.text


def test_carving_takes_whole_groups_of_every_class_and_leaves_test_alone() -> None:
    clips = [
        Clip(clip_id=f"{label}{i}", sources=("x",), split="train", group=f"{label}{i // 2}", label=label)
        for label in "ab"
        for i in range(20)
    ]
    clips.append(Clip(clip_id="t", sources=("x",), split="test", group="t", label="a"))
    carved = carve_val(clips, share=0.2, seed=0)
    assert [clip.clip_id for clip in carved] == [clip.clip_id for clip in clips]
    assert Counter((clip.label, clip.split) for clip in carved) == {
        **{(label, "train"): 16 for label in "ab"},
        **{(label, "val"): 4 for label in "ab"},
        ("a", "test"): 1,
    }
    assert all(len({clip.split for clip in carved if clip.group == group}) == 1 for group in ("a0", "b3"))


PARAMS = """
corpus: {manifest: mine.csv, root: corpus}
extract: {taps: [layer4], sampling: {every: 2}, limits: {max_source_frames: 10}}
"""


def test_probing_counts_frames_and_names_broken_clips(run: Builder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_video(corpus / "a/good.mp4", num_frames=9, fps=10, size=(48, 64))
    write_video(corpus / "a/long.mp4", num_frames=11)
    write_image_folder(corpus / "a/images", num_images=4)
    touch(corpus, "a/empty.mp4")
    run("folder", "corpus", "--out", "mine.csv")
    (tmp_path / "params.yaml").write_text(PARAMS)
    message = run("probe", "--out", "probe.csv", "--threads", "2", succeeds=False)
    assert message.startswith("2 of 4 clips are broken:\n")
    assert "a/empty: corpus/a/empty.mp4 can't be decoded: Invalid data" in message
    assert (
        "a/long: corpus/a/long.mp4 can't be decoded: 11 frames: above the limit max_source_frames, 10"
        in message
    )
    with (tmp_path / "probe.csv").open(newline="") as file:
        rows = {row["clip_id"]: row for row in csv.DictReader(file)}
    assert len(rows) == 4
    assert rows["a/good"] == {
        "clip_id": "a/good",
        "num_frames": "5",
        "seconds": "0.8",
        "height": "48",
        "width": "64",
        "problem": "",
    }
    assert rows["a/images"]["num_frames"] == "2"
    assert "Invalid data" in rows["a/empty"]["problem"]

    (corpus / "a/empty.mp4").unlink()
    (corpus / "a/long.mp4").unlink()
    write_video(corpus / "a/other.mp4", num_frames=3)
    run("folder", "corpus", "--out", "mine.csv")
    output = run("probe")
    assert output.startswith("3 clips, 9 frames, ")
    assert "frames a clip: 2 to 5, median 2\n" in output
    assert "64 x 64 (2), 64 x 48 (1)" in output


def test_probing_names_clips_that_preprocessing_can_t_use(run: Builder, tmp_path: Path) -> None:
    for name, size in {"good": (48, 64), "small": (32, 32), "other": (64, 48)}.items():
        write_video(tmp_path / f"corpus/a/{name}.mp4", num_frames=3, size=size)
    run("folder", "corpus", "--out", "mine.csv")
    params = (
        "{corpus: {manifest: mine.csv, root: corpus}, extract: {preprocessing: {resize: null, crop: 48}}}"
    )
    (tmp_path / "params.yaml").write_text(params)
    message = run("probe", succeeds=False)
    assert message.startswith("1 of 3 clips are broken:\n")
    assert (
        "small.mp4 can't be decoded: a frame of 32 x 32 pixels is smaller than the crop of 48 x 48" in message
    )


def look_corpus(folder: Path) -> None:
    """mine.csv and corpus/: a file in two splits, a copy in another split, and a damaged clip."""
    rows = []
    for number in range(8):
        write_video(folder / f"corpus/v{number}.mp4", num_frames=6, first_index=0x1234 * (number + 1))
        rows.append(Clip(f"c{number}", (f"v{number}.mp4",), ("train", "val", "test")[number % 3], label="a"))
    write_video(folder / "corpus/copy.mp4", num_frames=6, first_index=0x1234, size=(48, 80))
    touch(folder, "corpus/bad.mp4")
    rows += [Clip("copy", ("copy.mp4",), "test", label="b"), Clip("bad", ("bad.mp4",), "train", label="b")]
    rows.append(Clip("again", ("v1.mp4",), "train", start_seconds=0.3, label="b"))
    write_manifest(folder / "mine.csv", rows)
    (folder / "params.yaml").write_text("corpus: {manifest: mine.csv, root: corpus}\n")


def test_a_look_names_what_leaks_and_what_is_damaged(
    run: Builder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    look_corpus(tmp_path)
    message = run("look", succeeds=False)
    leaks, damage = message.split("\n1 of 11 opened clips can't be read.\n")
    assert leaks.startswith("1 source is in several splits")
    assert "  v1.mp4: c1 (val), again (train)\n" in leaks
    assert re.search(r"  c0 \(train\), copy \(test\)", leaks)
    assert damage.startswith("  bad: corpus/bad.mp4 can't be decoded: ")
    assert message.endswith("`python -m stages.manifest folder --group` makes splits of whole groups.")
    printed = capsys.readouterr().out
    assert printed.startswith("11 clips, 11 opened. Something leaks: ")
    assert (tmp_path / "reports/look.html").resolve().as_uri() in printed

    run("look", "--json", succeeds=False)
    found = json.loads(capsys.readouterr().out)
    assert (found["num_clips"], found["num_opened"], found["page"]) == (11, 11, "reports/look.html")
    assert [finding["kind"] for finding in found["findings"]][:3] == ["leak", "leak", "damage"]
    assert found["findings"][0]["cases"] == ["v1.mp4: c1 (val), again (train)"]


def test_a_look_at_some_clips_of_a_sound_corpus_says_what_it_left_out(run: Builder, tmp_path: Path) -> None:
    look_corpus(tmp_path)
    clips = read_manifest(tmp_path / "mine.csv").clips()[:8]
    write_manifest(tmp_path / "sound.csv", clips)
    output = run("look", "--manifest", "sound.csv", "--clips", "1", "--out", "page.html")
    assert output.startswith("8 clips, 3 opened. No leak was found")
    assert "3 of 8 clips were opened: nothing is known of the pictures of the others." in output
    assert "nothing is known of the pictures" in (tmp_path / "page.html").read_text()
    assert "0 is not a whole number above 0" in run("look", "--clips", "0", succeeds=False)
