"""`python -m stages.manifest`: folder trees, miniatures of the official corpora, and a look at every clip."""

import csv
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.corpora.splits import carve_val
from pipeline.errors import PipelineError
from pipeline.manifest import Clip, check_sources, read_manifest
from stages.manifest import main
from tests.media import write_image, write_image_folder, write_video

Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the stage in `tmp_path`; gives what it prints, or with succeeds=False the message of its error."""

    def run(*arguments: str | Path, succeeds: bool = True) -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["manifest", *map(str, arguments)])
        try:
            main()
        except (PipelineError, SystemExit) as error:
            assert not succeeds, capsys.readouterr().err
            return str(error) if isinstance(error, PipelineError) else capsys.readouterr().err
        assert succeeds
        return capsys.readouterr().out

    return run


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    names = [f"{label}/{i:02d}.mp4" for label in ("jump", "run") for i in range(20)]
    return touch(tmp_path / "videos", *names)


def test_a_folder_tree_becomes_a_manifest_split_class_by_class(
    run: Run, videos: Path, tmp_path: Path
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


def test_the_split_depends_on_paths_and_seed_alone(run: Run, videos: Path, tmp_path: Path) -> None:
    def splits(*options: str) -> dict[str, str]:
        run("folder", "videos", "--out", "mine.csv", "--fresh", *options)
        return {clip.clip_id: clip.split for clip in read_manifest(tmp_path / "mine.csv")}

    first = splits()
    assert splits() == first
    assert splits("--seed", "1") != first
    touch(videos, *(f"walk/{i}.mp4" for i in range(5)))  # another class leaves the others as they were
    assert {name: split for name, split in splits().items() if "walk" not in name} == first
    assert Counter(splits("--split", "0.5", "0.25", "0.25").values()) == {"train": 23, "val": 11, "test": 11}


def test_small_classes_are_in_every_split(run: Run, tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a/1.mp4", "a/2.mp4", "a/3.mp4", "b/1.mp4")
    run("folder", "videos", "--out", "mine.csv")
    clips = list(read_manifest(tmp_path / "mine.csv"))
    assert sorted(clip.split for clip in clips if clip.label == "a") == ["test", "train", "val"]
    assert [clip.split for clip in clips if clip.label == "b"] == ["train"]


def test_train_val_and_test_folders_are_the_splits(run: Run, tmp_path: Path) -> None:
    touch(tmp_path / "videos", "train/a/1.mp4", "val/a/2.mp4", "test/b/3.mp4", "README.txt")
    run("folder", "videos", "--out", "mine.parquet")
    assert list(read_manifest(tmp_path / "mine.parquet")) == [
        Clip(clip_id="train/a/1", sources=("train/a/1.mp4",), split="train", label="a"),
        Clip(clip_id="val/a/2", sources=("val/a/2.mp4",), split="val", label="a"),
        Clip(clip_id="test/b/3", sources=("test/b/3.mp4",), split="test", label="b"),
    ]


def test_images_and_folders_of_images_are_clips_and_other_files_are_not(run: Run, tmp_path: Path) -> None:
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


def test_a_labels_file_names_clips_and_classes(run: Run, tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(6)))
    (tmp_path / "labels.csv").write_text("source,label\n" + "".join(f"{i}.mp4,x{i % 2}\n" for i in range(6)))
    run("folder", "videos", "--out", "mine.csv", "--labels", "labels.csv")
    labels = {clip.clip_id: clip.label for clip in read_manifest(tmp_path / "mine.csv")}
    assert labels == {str(i): f"x{i % 2}" for i in range(6)}


def test_bad_input_gives_one_clear_message(run: Run, videos: Path, tmp_path: Path) -> None:
    def message(*arguments: str) -> str:
        return run("folder", *arguments, succeeds=False)

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


def test_the_stage_runs_as_users_run_it(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a/1.mp4", "loose.mp4")
    command = [sys.executable, "-m", "stages.manifest", "folder", "videos", "--out", "mine.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr
        == "error: videos/loose.mp4 lies in no class folder. Move it into one, or give --labels.\n"
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


def test_ucf101_follows_the_official_lists(run: Run, tmp_path: Path) -> None:
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


def test_ucf101_groups_are_of_a_class_and_never_straddle_splits(run: Run, tmp_path: Path) -> None:
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


def test_ucf101_may_be_converted_incomplete_and_elsewhere(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
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


def test_lists_that_are_not_ucf101s_are_refused(run: Run, tmp_path: Path) -> None:
    root = ucf101(tmp_path, num_groups=6)
    arguments = ("ucf101", "UCF-101", "--lists", "ucfTrainTestlist", "--out", "ucf.csv")
    path = root / "ucfTrainTestlist/trainlist01.txt"
    path.write_text(path.read_text().replace(" 37", " 1"))
    assert "is not as published" in run(*arguments, succeeds=False)
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
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, folders: bool
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


def test_kinetics_without_a_test_split_tests_on_val(run: Run, tmp_path: Path) -> None:
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


def test_faulty_csvs_of_kinetics_are_refused_with_their_lines(run: Run, tmp_path: Path) -> None:
    kinetics(tmp_path, folders=False)
    path = tmp_path / "bad.csv"
    arguments = ("kinetics", "k400", "--csv", "bad.csv", "--out", "k400.csv")
    path.write_text("label,youtube_id,time_start,time_end,split\na,b,c,10,train\na,b,0,10,dev\n")
    message = run(*arguments, succeeds=False)
    assert "line 2: time_start and time_end must be numbers" in message
    assert "line 3: split 'dev' is unknown" in message
    path.write_text("id,start\n")
    assert "the first line must name youtube_id, time_start" in run(*arguments, succeeds=False)
    path.write_text("label,youtube_id,time_start,time_end,split\na,b,0,10,train\n")
    assert "None of the 1 videos of the lists is below k400" in run(*arguments, succeeds=False)
    touch(tmp_path, "k400/again/video000001_000000_000010.mp4")
    assert "videos are there twice. Keep one" in run(*arguments, succeeds=False)


def test_a_video_in_several_official_splits_stays_there_without_a_group(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinetics(tmp_path, folders=False)
    with (tmp_path / "val.csv").open("a") as file:
        file.write("abseiling,video000001,50,60,val,0\n")
    touch(tmp_path, "k400/video000001_000050_000060.mp4")
    run("kinetics", "k400", "--csv", "train.csv", "val.csv", "test.csv", "--out", "k400.csv")
    clips = {clip.clip_id: clip for clip in read_manifest(tmp_path / "k400.csv")}
    pair = [clips["video000001_000000_000010"], clips["video000001_000050_000060"]]
    assert [(clip.split, clip.group) for clip in pair] == [("train", None), ("val", None)]
    assert "1 videos are in more than one split" in caplog.text


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


def test_probing_counts_frames_and_names_broken_clips(run: Run, tmp_path: Path) -> None:
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
    assert "a/long: corpus/a/long.mp4 can't be decoded: 11 frames: above extract.limits" in message
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
