"""`python -m stages.manifest` on miniatures of public data sets, in their official layouts."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.corpora import charades_corpus
from pipeline.manifest import Clip, FrameLabel, check_sources, read_manifest
from tests.support.builders import Builder, touch


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Builder:
    return Builder(tmp_path, monkeypatch, capsys)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def built(
    run: Builder, root: Path, command: str, *options: str, videos: str = "videos", lists: str
) -> tuple[dict[str, Clip], str]:
    """The clips of the manifest that the command makes, by their ids, and what it prints."""
    output = run(command, videos, "--lists", lists, "--out", "made.csv", *options)
    manifest = read_manifest(root / "made.csv")
    check_sources(manifest, root=root / videos)
    return {clip.clip_id: clip for clip in manifest}, output


def hmdb51(root: Path) -> None:
    """Two classes of three titles with two clips each; in split 2, one title is test and one clip unused."""
    for label in ("brush_hair", "wave"):
        names = [f"Film_{t}_{label}_u_nm_np1_fr_goo_{i}.avi" for t in "abc" for i in range(2)]
        touch(root / "hmdb51_org" / label, *names)
        uses = (1, 0, 1, 1, 2, 2)
        for split in (1, 2, 3):
            lines = [f"{name} {use} " for name, use in zip(names, uses, strict=True)]
            write(root / f"lists/{label}_test_split{split}.txt", *lines)


def test_hmdb51_follows_its_split_files(run: Builder, tmp_path: Path) -> None:
    hmdb51(tmp_path)
    clips, output = built(run, tmp_path, "hmdb51", "--split", "2", videos="hmdb51_org", lists="lists")
    assert clips["Film_c_wave_u_nm_np1_fr_goo_1"] == Clip(
        clip_id="Film_c_wave_u_nm_np1_fr_goo_1",
        sources=("wave/Film_c_wave_u_nm_np1_fr_goo_1.avi",),
        split="test",
        group="wave_Film_c",
        label="wave",
        meta={"body": "u", "motion": "nm", "people": "1", "view": "fr", "quality": "goo"},
    )
    assert Counter(clip.split for clip in clips.values())["test"] == 4
    assert {"wave_Film_a", "wave_Film_b"} == {
        clip.group for clip in clips.values() if clip.label == "wave" and clip.split != "test"
    }
    assert len(clips) == 10  # without the two unused ones
    assert "The lists name 10 clips: 10 are there, 0 are missing." in output
    assert "They have 2 classes, but 51 are published: are lists missing?" in output


def test_hmdb51_names_what_is_missing_or_not_as_published(run: Builder, tmp_path: Path) -> None:
    hmdb51(tmp_path)
    arguments = ("hmdb51", "hmdb51_org", "--lists", "lists", "--out", "hmdb.csv")
    (tmp_path / "hmdb51_org/wave/Film_c_wave_u_nm_np1_fr_goo_1.avi").unlink()
    assert "The lists name 10 clips: 9 are there, 1 are missing." in run(*arguments)
    assert (tmp_path / "hmdb.missing.txt").read_text() == "wave/Film_c_wave_u_nm_np1_fr_goo_1.avi\n"
    write(tmp_path / "lists/wave_test_split1.txt", "Film_c_wave_u_nm_np1_fr_goo_1.avi 3")
    assert "line 1: 'Film_c_wave_u_nm_np1_fr_goo_1.avi 3' is not as published" in run(
        *arguments, succeeds=False
    )
    (tmp_path / "empty").mkdir()
    message = run(*arguments[:3], "empty", *arguments[4:], succeeds=False)
    assert "empty has no files like brush_hair_test_split1.txt" in message


def ssv2(root: Path, *, prefix: str = "") -> None:
    """Two labels, three train clips of each, one of each in validation and in test."""
    labels = {"Holding something": "0", "Moving something up": "1"}
    lists = root / "labels"
    lists.mkdir()
    parts: dict[str, list[dict[str, object]]] = {"train": [], "validation": [], "test": []}
    answers = []
    for number, part in enumerate(["train"] * 6 + ["validation"] * 2 + ["test"] * 2):
        label = list(labels)[number % 2]
        said = {"label": label.lower().replace("something", "a | cup"), "placeholders": ["a cup"]}
        template = {"template": label.replace("something", "[something]"), **said}
        parts[part].append({"id": str(number), **(template if part != "test" else {})})
        if part == "test":
            answers.append(f"{number};{label}")
    for part, entries in {"labels": labels, **parts}.items():
        (lists / f"{prefix}{part}.json").write_text(json.dumps(entries))
    write(lists / "test-answers.csv", *answers)
    touch(root / "videos", *(f"{number}.webm" for number in range(10)))


def test_something_something_follows_its_json_files(run: Builder, tmp_path: Path) -> None:
    ssv2(tmp_path)
    clips, output = built(run, tmp_path, "ssv2", lists="labels")
    assert clips["7"] == Clip(
        clip_id="7",
        sources=("7.webm",),
        split="val",
        label="Moving something up",
        captions=("moving a cup up",),
    )
    assert clips["8"] == Clip("8", ("8.webm",), "test", label="Holding something")
    assert Counter(clip.split for clip in clips.values()) == {"train": 6, "val": 2, "test": 2}
    assert "They have 2 classes, but 174 are published" in output


def test_something_something_without_answers_takes_test_from_validation(run: Builder, tmp_path: Path) -> None:
    ssv2(tmp_path, prefix="something-something-v2-")
    (tmp_path / "labels/test-answers.csv").unlink()
    clips, _ = built(run, tmp_path, "ssv2", lists="labels")
    assert {name for name, clip in clips.items() if clip.split == "test"} == {"6", "7"}
    assert Counter((clip.label, clip.split) for clip in clips.values() if clip.split != "test") == {
        (label, split): count
        for label in ("Holding something", "Moving something up")
        for split, count in (("train", 2), ("val", 1))
    }
    path = tmp_path / "labels/something-something-v2-train.json"
    path.write_text(json.dumps([{"id": "1", "template": "Eating [something]"}, 3]))
    message = run("ssv2", "videos", "--lists", "labels", "--out", "ssv2.csv", succeeds=False)
    assert "entry 1: id '1' has the label 'Eating something', which is not in labels.json." in message
    assert "entry 2: " in message
    path.write_text("[")
    assert "can't be read as JSON" in run(
        "ssv2", "videos", "--lists", "labels", "--out", "x.csv", succeeds=False
    )


CHARADES_HEADER = "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length"


def charades(root: Path) -> tuple[Path, Path]:
    """Eight train videos of four subjects, one test video, and one without actions."""
    write(root / "Charades/Charades_v1_classes.txt", "c000 Holding some clothes", "c001 Opening a door")
    rows = [
        f"V{number},S{number % 4},Kitchen,6,7,Yes,A script.,door,,c000 1.50 {number + 2}.00,20"
        for number in range(8)
    ]
    write(root / "Charades/Charades_v1_train.csv", CHARADES_HEADER, *rows)
    overlapping = "c001 5.00 9.00;c000 0.00 6.50;c000 7.00 7.00"
    write(
        root / "Charades/Charades_v1_test.csv",
        CHARADES_HEADER,
        f'T1,S9,Bedroom,6,7,Yes,"Opens, then holds.",door,,{overlapping},30',
        "T2,S9,Bedroom,6,7,Yes,Nothing.,,,,30",
        "T3,S9,Bedroom,6,7,Yes,Nothing.,,,c001 0 1,30",
    )
    touch(root / "videos", *(f"V{number}.mp4" for number in range(8)), "T1.mp4", "T2.mp4")
    return root / "videos", root / "Charades"


def test_charades_has_all_classes_of_a_clip_and_their_times(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    videos, lists = charades(tmp_path)
    corpus = charades_corpus(videos, lists=lists, val_share=0.25, seed=0)
    clips = {clip.clip_id: clip for clip in corpus.clips}
    assert clips["T1"] == Clip(
        clip_id="T1",
        sources=("T1.mp4",),
        split="test",
        group="S9",
        label="Opening a door|Holding some clothes",
        frame_labels=(FrameLabel(0, 6.5, "Holding some clothes"), FrameLabel(5, 9, "Opening a door")),
        meta={"scene": "Bedroom"},
    )
    assert Counter(clip.split for clip in clips.values()) == {"train": 6, "val": 2, "test": 1}
    assert len({clip.group for clip in clips.values() if clip.split == "val"}) == 1
    assert (corpus.missing, corpus.num_classes, corpus.num_classes_published) == (("T3.mp4",), 2, 157)
    assert "Left out: 1 videos without actions: T2." in caplog.text
    assert "1 actions end when they start" in caplog.text


def test_charades_without_overlap_becomes_a_manifest(run: Builder, tmp_path: Path) -> None:
    charades(tmp_path)
    path = tmp_path / "Charades/Charades_v1_test.csv"
    path.write_text(path.read_text().replace("c001 5.00", "c001 6.50"))
    clips, _ = built(run, tmp_path, "charades", lists="Charades")
    assert clips["T1"].frame_labels[1] == FrameLabel(6.5, 9, "Opening a door")
    path.write_text(path.read_text().replace("c001 0 1", "c999 0 1").replace("c000 0.00", "c000"))
    message = run("charades", "videos", "--lists", "Charades", "--out", "charades.csv", succeeds=False)
    assert "line 2: actions 'c001 6.50 9.00;c000 6.50;c000 7.00 7.00' is not like" in message
    assert "line 4: action 'c999' is not in Charades_v1_classes.txt." in message


def mstcn(root: Path, names: list[str], *, num_test: int) -> None:
    """A data set of MS-TCN's data.zip: the last names are test, and each shows one of three label runs."""
    write(root / "data/mapping.txt", "0 cut", "1 stir", "2 background")
    for name in names:
        write(root / f"data/groundTruth/{name}.txt", *["background"] * 3, *["cut"] * 6, *["stir"] * 1)
    for part, some in (("train", names[:-num_test]), ("test", names[-num_test:])):
        write(root / f"data/splits/{part}.split1.bundle", *(f"{name}.txt" for name in some))


def test_labels_of_frames_become_intervals_that_meet_halfway(run: Builder, tmp_path: Path) -> None:
    names = [f"rgb-{subject:02d}-{number}" for subject in range(1, 6) for number in (1, 2)]
    mstcn(tmp_path, names, num_test=2)
    touch(tmp_path / "videos", *(f"{name}.avi" for name in names))
    clips, output = built(run, tmp_path, "50salads", lists="data")
    assert clips["rgb-05-2"] == Clip(
        clip_id="rgb-05-2",
        sources=("rgb-05-2.avi",),
        split="test",
        group="05",
        frame_labels=(
            FrameLabel(0.0, 0.0833, "background"),
            FrameLabel(0.0833, 0.2833, "cut"),
            FrameLabel(0.2833, 0.3333, "stir"),
        ),
    )
    labels = [
        next(item.label for item in clips["rgb-05-2"].frame_labels if time < item.end_seconds)
        for time in [frame / 30 for frame in range(10)]
    ]
    assert labels == ["background"] * 3 + ["cut"] * 6 + ["stir"]
    assert Counter(clip.split for clip in clips.values()) == {"train": 6, "val": 2, "test": 2}
    assert len({clip.group for clip in clips.values() if clip.split == "val"}) == 1
    assert "They have 3 classes, but 19 are published" in output
    clips, _ = built(run, tmp_path, "50salads", "--fps", "10", lists="data")
    assert [item.end_seconds for item in clips["rgb-01-1"].frame_labels] == [0.25, 0.85, 1.0]


def test_breakfasts_videos_are_found_in_their_own_folders(run: Builder, tmp_path: Path) -> None:
    names = [f"P{s:02d}_{camera}_P{s:02d}_tea" for s in (3, 4, 5) for camera in ("cam01", "stereo01")]
    mstcn(tmp_path, names, num_test=2)
    for subject in ("P03", "P04", "P05"):
        own = (f"{subject}/cam01/{subject}_tea.avi", f"{subject}/stereo/{subject}_tea_ch1.avi")
        touch(tmp_path / "videos", *own, f"{subject}/stereo/{subject}_tea_ch0.avi")
    clips, _ = built(run, tmp_path, "breakfast", lists="data")
    assert clips.keys() == set(names)
    stereo = clips["P05_stereo01_P05_tea"]
    assert stereo.sources == ("P05/stereo/P05_tea_ch1.avi",)
    assert (stereo.group, stereo.split) == ("P05", "test")
    assert stereo.meta == {"camera": "stereo01", "activity": "tea"}


def test_gteas_bundles_name_what_is_missing_or_not_as_published(run: Builder, tmp_path: Path) -> None:
    names = [f"S{subject}_Tea_C1" for subject in (1, 2, 3, 4)]
    mstcn(tmp_path, names, num_test=1)
    touch(tmp_path / "videos", *(f"{name}.mp4" for name in names[1:]))
    arguments = ("gtea", "videos", "--lists", "data", "--out", "gtea.csv")
    assert "The lists name 4 clips: 3 are there, 1 are missing." in run(*arguments)
    assert (tmp_path / "gtea.missing.txt").read_text() == "S1_Tea_C1\n"
    clips, _ = built(run, tmp_path, "gtea", lists="data")
    assert clips["S4_Tea_C1"].meta == {"activity": "Tea"}
    write(tmp_path / "data/groundTruth/S3_Tea_C1.txt", "cut", "fly")
    assert "S3_Tea_C1.txt: 1 problem\n  line 2: 'fly' is not in mapping.txt." in run(
        *arguments, succeeds=False
    )
    write(tmp_path / "data/splits/test.split1.bundle", "rgb-01-1.txt")
    write(tmp_path / "data/groundTruth/S3_Tea_C1.txt", "cut")
    assert "'rgb-01-1.txt' is not as published: a video of gtea." in run(*arguments, succeeds=False)
    (tmp_path / "data/mapping.txt").unlink()
    message = run(*arguments, succeeds=False)
    assert "No data/mapping.txt. Unpack MS-TCN's data.zip" in message
