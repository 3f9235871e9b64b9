"""Folder trees and CSVs of one's own: what their shapes mean, and what is said of what can't be used."""

import os
from collections import Counter
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from pipeline.corpora import folder_corpus, labels_corpus, name_clips
from pipeline.corpora.files import clips_by_stem
from pipeline.errors import ManifestError, PipelineError
from pipeline.frames import foreign_kind
from pipeline.manifest import Clip, FrameLabel
from tests.support.builders import link, touch
from tests.support.media import write_image, write_image_folder

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isommp42"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"


def message_of(folder: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        folder_corpus(folder)
    return str(caught.value)


def splits_of(folder: Path) -> dict[str, str]:
    return {clip.sources[0]: clip.split for clip in folder_corpus(folder).clips}


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Val"])
def test_folders_that_are_named_like_splits_are_splits(tmp_path: Path, val: str) -> None:
    touch(tmp_path, "train/a/1.mp4", f"{val}/a/2.mp4", "test/a/3.mp4")
    assert splits_of(tmp_path) == {"train/a/1.mp4": "train", f"{val}/a/2.mp4": "val", "test/a/3.mp4": "test"}


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.mp4", "car/2.mp4")
    assert Counter(clip.label for clip in folder_corpus(tmp_path).clips) == {"train": 1, "car": 1}
    assert set(splits_of(tmp_path).values()) == {""}


def test_trees_that_mean_several_things_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "lacks", "train/a/1.mp4", "test/a/3.mp4")
    assert f"(test, train), but none for val. Make {tmp_path / 'lacks/val'}" in message_of(tmp_path / "lacks")
    touch(tmp_path / "two", "train/a/1.mp4", "test/a/3.mp4", "val/a/1.mp4", "dev/a/1.mp4")
    assert "the folders dev, val are all split 'val'" in message_of(tmp_path / "two")
    touch(tmp_path / "beside", "train/a/1.mp4", "test/a/3.mp4", "val/a/1.mp4", "more/a/4.mp4", "notes/x.txt")
    assert "named like splits (test, train, val) beside others with clips (more)" in message_of(
        tmp_path / "beside"
    )
    touch(tmp_path / "deep", "a/one/1.mp4", "b/2.mp4")
    assert "deep/a/one holds clips, and a class folder holds these itself" in message_of(tmp_path / "deep")


def test_a_folder_of_videos_and_images_or_of_two_series_is_no_clip(tmp_path: Path) -> None:
    touch(tmp_path, "a/clip/1.mp4", "a/clip/cover.jpg", "a/other/img_1.jpg", "a/other/img_2.jpg")
    touch(tmp_path, "a/other/flow_1.jpg", "a/other/flow_2.jpg")
    message = message_of(tmp_path)
    assert "a/clip holds videos (1.mp4) beside images (cover.jpg)" in message
    assert "a/other holds 2 series of images (flow_1.jpg, flow_2.jpg; img_1.jpg, img_2.jpg)" in message


def test_videos_and_images_side_by_side_in_a_class_are_clips_each(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.mp4", "a/2.asf", "a/3.VOB")
    write_image(tmp_path / "a/4.png", index=1)
    assert sorted(splits_of(tmp_path)) == ["a/1.mp4", "a/2.asf", "a/3.VOB", "a/4.png"]


def test_what_a_folder_without_clips_holds_is_said(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.xyz", "a/2.xyz", "b/notes.txt", "b/README")
    assert "it holds 2 .xyz, 1 without a suffix, 1 .txt." in message_of(tmp_path)


def test_links_that_lead_back_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "a/v_1.mp4", "b/v_2.mp4")
    link(tmp_path / "self", ".")
    link(tmp_path / "a/up", "..")
    assert sorted(splits_of(tmp_path)) == ["a/v_1.mp4", "b/v_2.mp4"]
    assert f"{tmp_path / 'self'} is a link that leads back to {tmp_path}" in caplog.text
    assert clips_by_stem(tmp_path / "a") == {"v_1": "v_1.mp4"}  # not what lies beside it
    link(tmp_path / "a/to_b", "../b")  # a circle of two, in which each file counts once
    link(tmp_path / "b/to_a", "../a")
    assert clips_by_stem(tmp_path) == {"v_1": "a/v_1.mp4", "v_2": "a/to_b/v_2.mp4"}


def test_names_that_a_manifest_cannot_hold_are_refused_with_what_to_do(tmp_path: Path) -> None:
    touch(tmp_path, " run/1.mp4", " run/2.mp4", "jump /1.mp4", "jump/1.mp4", "jump/a|b.mp4", "jump/a\tb.mp4")
    (tmp_path / os.fsdecode(b"jump/caf\xe9.mp4")).touch()
    heading, *problems = message_of(tmp_path).split("\n  ")
    assert heading.startswith(f"{tmp_path}: a manifest can't hold 5 of its names. Rename these")
    assert problems == [
        "' run' begins or ends with white space, which does not count in a manifest.",
        "'jump/a\\tb.mp4' holds a control character.",
        "'jump/a|b.mp4' holds '|', which separates the names of several images.",
        r"'jump/caf\\xe9.mp4' is not UTF-8. From Latin-1, `convmv -f latin1 -t utf8 -r --notest FOLDER`"
        " renames all.",
        "'jump ' begins or ends with white space, which does not count in a manifest.",
    ]


def test_names_of_images_within_a_clip_need_not_be_utf_8(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "a/clip", num_images=2)
    (tmp_path / "a/clip/0.png").rename(tmp_path / os.fsdecode(b"a/clip/0\xe9.png"))
    assert list(splits_of(tmp_path)) == ["a/clip"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "x.jpg",
            b"\xef\xbb\xbf\n<!DOCTYPE html>\n<html>404",
            "x.jpg is an HTML page. Its download went wrong",
        ),
        ("x.mp4", b"<HTML><body>Sign in", "x.mp4 is an HTML page. Its download went wrong"),
        ("x.png", '{"error": "für alle"}'.encode(), "x.png is text. Its download went wrong"),
        ("x.jpg", MP4, "x.jpg is a video (MP4 or MOV) with an image's name. Rename it"),
        ("x.mp4", LFS, "x.mp4 was not fetched by Git LFS: the file is only a pointer. Run `git lfs pull`"),
        ("x.mp4", b"/annex/objects/SHA256E-s9--00.mp4\n", "x.mp4 was not fetched by git-annex"),
    ],
)
def test_files_that_are_not_what_they_are_named_are_left_out_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes, said: str
) -> None:
    touch(tmp_path, "a/good.mp4", f"a/{name}")
    write_image(tmp_path / "a/good.jpg", index=1)
    (tmp_path / "a" / name).write_bytes(content)
    assert sorted(splits_of(tmp_path)) == ["a/good.jpg", "a/good.mp4"]
    assert "Left out: 1 of 3 clips." in caplog.text
    assert f"a/{said}" in caplog.text


def test_a_link_to_nothing_is_left_out_and_said_to_stop_dvc(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a/good.mp4")
    (tmp_path / "a/gone.mp4").symlink_to("../.git/annex/objects/x/gone.mp4")
    assert list(splits_of(tmp_path)) == ["a/good.mp4"]
    assert "a/gone.mp4 was not fetched by git-annex" in caplog.text
    assert "Mend links to nothing first: DVC, which reads the whole folder, stops at them." in caplog.text


def test_images_and_videos_that_begin_as_text_are_clips(tmp_path: Path) -> None:
    touch(tmp_path, "a/empty.mp4", "a/empty.jpg")
    images = {"grey.ppm": b"P2\n2 1\n255\n65 66\n", "colour.ppm": b"P6\n1 1\n255\nABC"}
    for name, content in images.items():
        (tmp_path / "a" / name).write_bytes(content)
    (tmp_path / "a/v.y4m").write_bytes(b"YUV4MPEG2 W2 H2 F1:1\nFRAME\nABCDEF")
    assert {Path(source).name for source in splits_of(tmp_path)} == {
        *images,
        "v.y4m",
        "empty.mp4",
        "empty.jpg",
    }
    assert all(foreign_kind(content, is_image=True) is None for content in images.values())


def test_an_avif_image_is_a_clip_exactly_if_pillow_reads_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a/good.jpg", index=1)
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "AVIF")
    data = file.getvalue()
    (tmp_path / "a/1.jpg").write_bytes(data)
    (tmp_path / "a/2.avif").write_bytes(data[:8] + b"mif1" + data[12:])  # the brand of both HEIC and AVIF
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    assert sorted(splits_of(tmp_path)) == ["a/1.jpg", "a/2.avif", "a/good.jpg"]
    monkeypatch.delitem(Image.OPEN, "AVIF")
    assert list(splits_of(tmp_path)) == ["a/good.jpg"]
    assert "a/1.jpg is an AVIF image, which Pillow can't read here (and so a/2.avif). Install" in caplog.text


def test_a_heic_image_is_a_clip_exactly_if_pillow_reads_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "a/good.jpg", index=1)
    (tmp_path / "a/photo.jpg").write_bytes(HEIC)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    assert list(splits_of(tmp_path)) == ["a/good.jpg"]
    assert "a/photo.jpg is a HEIC image, which Pillow can't read here. Install pillow-heif" in caplog.text
    monkeypatch.setitem(Image.OPEN, "HEIF", None)
    assert list(splits_of(tmp_path)) == ["a/good.jpg", "a/photo.jpg"]


def test_links_to_files_that_were_not_fetched_are_one_line_a_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a/good.mp4")
    for name in ("a/1.mp4", "a/2.mp4", "b/frames/1.png"):
        link(tmp_path / name, "../.git/annex/objects/Xx/9k/SHA256E-s1--00.mp4/SHA256E-s1--00.mp4")
    link(tmp_path / "a/3.mp4", f"/data/.dvc/cache/files/md5/ab/{'0' * 30}")
    link(tmp_path / "a/4.mp4", "/nowhere/4.mp4")
    link(tmp_path / "c", "/nowhere/c")
    corpus = folder_corpus(tmp_path)
    assert [clip.sources for clip in corpus.clips] == [("a/good.mp4",)]
    assert corpus.faulty == ("a/1.mp4", "a/2.mp4", "a/3.mp4", "a/4.mp4", "b/frames")
    assert (
        "a/1.mp4 was not fetched by git-annex: its content is not on this machine (and so a/2.mp4, b/frames)."
        " Run `git annex get .` (or `datalad get .`)" in caplog.text
    )
    assert "a/3.mp4 was not fetched by DVC" in caplog.text
    assert "a/4.mp4 is a link to '/nowhere/4.mp4', which is not there. Mount or fetch" in caplog.text
    assert f"{tmp_path / 'c'} is a link to '/nowhere/c', which is not there" in caplog.text
    (tmp_path / "a/good.mp4").unlink()
    assert "has no clips that can be used:\n  a/1.mp4 was not fetched by git-annex" in message_of(tmp_path)


def test_folders_of_frames_stand_for_videos_of_official_lists(tmp_path: Path) -> None:
    touch(tmp_path, "Run/v_Run_g01_c01/0001.jpg", "Run/v_Run_g01_c01/0002.jpg", "Run/v_Run_g01_c02.avi")
    for path in (tmp_path / "Run/v_Run_g01_c01").iterdir():
        write_image(path, index=1)
    assert clips_by_stem(tmp_path) == {
        "v_Run_g01_c02": "Run/v_Run_g01_c02.avi",
        "v_Run_g01_c01": "Run/v_Run_g01_c01",
    }
    touch(tmp_path, "v_Run_g01_c01.avi")
    with pytest.raises(ManifestError, match=r"1 videos are there twice\. Keep one: .*v_Run_g01_c01\.avi"):
        clips_by_stem(tmp_path)


def labels_of(tmp_path: Path, text: str, *, group_column: str | None = None) -> list[Clip]:
    (tmp_path / "labels.csv").write_text(text)
    return list(labels_corpus(tmp_path / "labels.csv", tmp_path / "videos", group_column=group_column).clips)


def test_a_labels_csv_may_have_any_column_of_a_manifest(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "a.mp4", "x/1.png", "x/2.png")
    for name in ("1", "2"):
        write_image(tmp_path / f"videos/x/{name}.png", index=1)
    clips = labels_of(
        tmp_path,
        "source,start_seconds,end_seconds,split,subject,label,caption,value,frame_labels,questions,image_fps\n"
        'a.mp4,1,2.5,train,ann,run,"runs, fast|hops",,,,\n'
        "a.mp4,2,,valid,ann,hop,,0.5|1,2-3:up,who?=Ann,\n"
        "x/1.png|x/2.png,,,test,bob,sit,,,,,25\n",
        group_column="subject",
    )
    assert clips == [
        Clip("", ("a.mp4",), "train", 1.0, 2.5, "ann", "run", captions=("runs, fast", "hops")),
        Clip(
            *("", ("a.mp4",), "val", 2.0, None, "ann", "hop"),
            values=(0.5, 1.0),
            frame_labels=(FrameLabel(2.0, 3.0, "up"),),
            questions=clips[1].questions,
        ),
        Clip("", ("x/1.png", "x/2.png"), "test", group="bob", label="sit", image_fps=25.0),
    ]
    assert [(item.question, item.answer) for item in clips[1].questions] == [("who?", "Ann")]
    assert [clip.clip_id for clip in name_clips(clips)] == ["a_1-2.5", "a_2-end", "x/1"]


def test_a_folder_that_a_labels_csv_names_and_that_has_no_images_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "videos", "a.mp4", "folder/1.mp4")
    clips = labels_of(tmp_path, "source,label\na.mp4,run\nfolder,hop\n")
    assert [clip.sources for clip in clips] == [("a.mp4",)]
    assert "folder is a folder without images. Name a video, an image or a folder of images." in caplog.text


def test_a_labels_csv_without_targets_leaves_labels_to_the_folders(tmp_path: Path) -> None:
    touch(tmp_path / "videos", "run/1.mp4", "hop/2.mp4", "3.mp4")
    clips = labels_of(tmp_path, "source,group\nrun/1.mp4,ann\nhop/2.mp4,bob\n3.mp4,bob\n")
    assert [(clip.label, clip.group) for clip in clips] == [("run", "ann"), ("hop", "bob"), (None, "bob")]


def test_every_fault_of_a_labels_csv_is_named_with_its_line(tmp_path: Path) -> None:
    touch(tmp_path / "videos", *(f"{i}.mp4" for i in range(9)))
    for name in ("l1.mp4", "l2.mp4"):
        link(tmp_path / "videos" / name, ".git/annex/objects/x/y")
    lines = [
        "source,label,split,start_seconds,clip_id",
        "1.mp4,pick up, then put down,train,,",
        "2.mp4,run",
        '"3.mp4","run\nhop",train,,',
        "4.mp4,run,eval,,",
        ",run,train,,",
        "5.mp4,,train,,",
        "6.mp4,run,train,1.0,same",
        "6.mp4,run,train,1,same",
        "9.mp4,run,train,,",
        "l1.mp4,run,train,,",
        "l2.mp4,run,train,,",
        "7.mp4,run,train,-1,",
    ]
    with pytest.raises(ManifestError) as caught:
        labels_of(tmp_path, "\n".join(lines))
    heading, *problems = str(caught.value).split("\n  ")
    assert heading == f"{tmp_path / 'labels.csv'}: {len(problems)} problems"
    expected = [
        "line 2: 6 values, but 5 columns. Quote values with commas.",
        "line 3: 2 values, but 5 columns",
        "line 4: label 'run\\nhop' has a line break",
        "line 6: split 'eval' is unknown. Available: train, training, val, valid,",
        "line 7: source is empty",
        "line 8: needs a source and a label",
        "line 10: 6.mp4 is repeated: it is already in line 9",
        "line 10: clip_id 'same' is already in line 9",
        f"line 11: {tmp_path / 'videos/9.mp4'} does not exist",
        f"line 12: {tmp_path / 'videos/l1.mp4'} was not fetched by git-annex: its content is not on this"
        f" machine (and so {tmp_path / 'videos/l2.mp4'}). Run `git annex get .`",
        "line 14: start_seconds -1.0 is negative",
    ]
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a.mp4,run\n", "column 'source' is missing. Required: source."),
        ("source,lable\na.mp4,run\n", "unknown column 'lable'. Available: clip_id, source,"),
        ("source,label,\na.mp4,run,\n", "a column has no name"),
        ("source,label,label\na.mp4,run,run\n", "column 'label' is there 2 times. Keep one."),
        ("source,label\n", "names no clips"),
        ("", "is empty"),
    ],
)
def test_a_file_that_is_no_labels_csv_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    touch(tmp_path / "videos", "a.mp4")
    with pytest.raises(PipelineError) as caught:
        labels_of(tmp_path, text)
    assert complaint in str(caught.value)
