"""The manifest: read, check, write."""

import dataclasses
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ManifestError, TextFileError, TornGroupError
from pipeline.manifest import (
    Clip,
    FrameLabel,
    Question,
    check_sources,
    clips_digest,
    column_names,
    read_manifest,
    write_manifest,
)

HEADER = "clip_id,source,split,start_seconds,end_seconds,group,label,caption,value,frame_labels,image_fps"
GOOD_ROWS = ["a,a.mp4,train", "b,b.mp4,val", "c,c.mp4,test"]


def manifest_of(tmp_path: Path, *lines: str, header: str = "clip_id,source,split") -> Path:
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def problems_of(path: Path) -> list[str]:
    """What read_manifest complains of, line by line, without the heading."""
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    heading, *problems = str(caught.value).split("\n  ")
    assert heading.startswith(str(path))
    assert f"{len(problems)} problem" in heading
    return problems


def problems_in_row(tmp_path: Path, column: str, value: str) -> list[str]:
    """What is wrong with a fourth clip in row 5 with this value."""
    cells = {"clip_id": "d", "source": "d.mp4", "split": "train"} | {column: value}
    rows = [",".join([row, *[""] * (len(cells) - 3)]) for row in GOOD_ROWS]
    return problems_of(manifest_of(tmp_path, *rows, ",".join(cells.values()), header=",".join(cells)))


def test_every_column_is_read(tmp_path: Path) -> None:
    path = manifest_of(
        tmp_path,
        'one,v/1.mp4,train,0.5,2,s1,run,"a dog runs, fast|a dog",3.5,0.5-0.75:left|1-2:up,',
        "two,x/1.png|x/2.png,val,,,,,,-1|2.5e3,,12.5",
        "three,x,test,,,,,,,,",
        header=HEADER,
    )
    assert list(read_manifest(path)) == [
        Clip(
            clip_id="one",
            sources=("v/1.mp4",),
            split="train",
            start_seconds=0.5,
            end_seconds=2.0,
            group="s1",
            label="run",
            captions=("a dog runs, fast", "a dog"),
            values=(3.5,),
            frame_labels=(FrameLabel(0.5, 0.75, "left"), FrameLabel(1.0, 2.0, "up")),
        ),
        Clip(
            clip_id="two", sources=("x/1.png", "x/2.png"), split="val", values=(-1.0, 2500.0), image_fps=12.5
        ),
        Clip(clip_id="three", sources=("x",), split="test"),
    ]


def test_optional_columns_may_be_absent_and_white_space_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    path.write_bytes(
        b"\xef\xbb\xbfsplit,clip_id,source\r\n train , a,a.mp4\r\nval,b,b.mp4\r\n\r\ntest,c,c.mp4"
    )
    manifest = read_manifest(path)
    assert len(manifest) == 3
    assert manifest.column("clip_id").to_pylist() == ["a", "b", "c"]
    assert manifest.clips(split="test") == [Clip(clip_id="c", sources=("c.mp4",), split="test")]
    assert manifest.rows.tolist() == [2, 3, 5]


def test_all_problems_are_reported_at_once_with_their_rows(tmp_path: Path) -> None:
    path = manifest_of(
        tmp_path,
        "a,a.mp4,train,0,1,g",
        "",
        "a,b.mp4,dev,-1,x,",
        "c,c.mp4,val,5,5,g",
        "d,d.mp4",
        header="clip_id,source,split,start_seconds,end_seconds,group",
    )
    problems = problems_of(path)
    assert problems[0].startswith(
        "group 'g' is in train (row 2) and val (row 5). A group stays in one split:"
    )
    assert [problem.split(":")[0] for problem in problems[1:]] == [
        "no clip has split 'test'. Each of train, val, test needs some.",
        *["row 4"] * 4,
        "row 5",
        "row 6",
    ]
    text = "\n".join(problems)
    assert "row 4: clip_id 'a' is already in row 2." in text
    assert "row 4: split 'dev' is unknown. Available: train, val, test." in text
    assert "row 4: start_seconds -1.0 is negative" in text
    assert "row 4: end_seconds 'x' is not a number." in text
    assert "row 5: end_seconds 5.0 is not after start_seconds." in text
    assert "row 6: 2 values, but 6 columns." in text


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("clip_id", "", "clip_id is empty"),
        ("clip_id", '"d\ne"', "has a line break"),
        ("source", "", "source is empty"),
        ("source", "d.png||e.png", "has an empty name"),
        ("source", "d.png|", "has an empty name"),
        ("source", "/data/d.mp4", "is not below the corpus's root"),
        ("source", "d.png|../e.png", "is not below the corpus's root"),
        ("source", '"d\ne"', "has a line break"),
        ("label", '"d\ne"', "has a line break"),
        ("label", "walk|", "has an empty name"),
        ("group", '"d\ne"', "has a line break"),
        ("split", "", "split is empty"),
        ("split", "Train", "split 'Train' is unknown"),
        ("start_seconds", "-0.1", "is negative"),
        ("start_seconds", "1:30", "start_seconds '1:30' is not a number"),
        ("end_seconds", "0", "is not after start_seconds"),
        ("value", "nan", "value 'nan' is not a number"),
        ("value", "1e999", "is not finite"),
        ("value", "1||2", "value '1||2' is not a number, or several"),
        ("value", "1|-1e999", "is not finite"),
        ("image_fps", "0", "is not above 0"),
        ("frame_labels", "left", "is not like"),
        ("frame_labels", "0.5-1:left|", "is not like"),
        ("frame_labels", "1-0.5:left", "has an empty interval"),
        ("frame_labels", "1-2:left|0-1:up", "is not in order of time"),
        ("frame_labels", "0-1: |1-2:up", "is not like"),
        ("caption", "a dog|", "has an empty text"),
        ("questions", "who?", "is not like who?=Ann"),
        ("questions", "who?=Ann|when?= ", "is not like who?=Ann"),
        ("questions", "who?=Ann=Bob", "is not like who?=Ann"),
    ],
)
def test_one_faulty_value_is_one_problem_with_its_row(
    tmp_path: Path, column: str, value: str, complaint: str
) -> None:
    problems = problems_in_row(tmp_path, column, value)
    assert len(problems) == 1
    assert problems[0].startswith("row 5: ")
    assert complaint in problems[0]


def test_unknown_missing_and_repeated_columns_are_refused(tmp_path: Path) -> None:
    path = manifest_of(tmp_path, *(f"{row},1" for row in GOOD_ROWS), header="clip_id,source,split,lable")
    assert problems_of(path)[0].startswith("unknown column 'lable'. Available: clip_id, source,")
    assert problems_of(manifest_of(tmp_path, "a,train", header="clip_id,split")) == [
        "column 'source' is missing. Required: clip_id, source, split."
    ]
    path = manifest_of(tmp_path, *(f"{row},x" for row in GOOD_ROWS), header="clip_id,source,split,split")
    assert problems_of(path) == ["column 'split' is there 2 times. Keep one."]


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_columns_of_ones_own_are_read_written_and_written_again(tmp_path: Path, name: str) -> None:
    clips = [
        Clip("a", ("a.mp4",), "train", meta={"site": "Köln, Dom", "camera": "2"}),
        Clip("b", ("b.mp4",), "val"),
        Clip("c", ("c.mp4",), "test", meta={"camera": "1"}),
    ]
    write_manifest(tmp_path / name, clips)
    manifest = read_manifest(tmp_path / name)
    assert list(manifest) == clips
    assert manifest.column("meta_camera").to_pylist() == ["2", None, "1"]
    assert column_names(tmp_path / name) == ["clip_id", "source", "split", "meta_camera", "meta_site"]


def test_unknown_columns_are_told_how_a_column_of_ones_own_is_named(tmp_path: Path) -> None:
    header = "clip_id,source,split,camera,meta_,meta_my site"
    problems = problems_of(manifest_of(tmp_path, *(f"{row},1,2,3" for row in GOOD_ROWS), header=header))
    assert len(problems) == 3
    assert problems[0].startswith("unknown column 'camera'. Available: clip_id, ")
    assert problems[0].endswith("begins with meta_, and letters, digits and '_' follow: meta_camera.")
    assert problems[1].endswith("follow: meta_camera.")
    assert problems[2].endswith("follow: meta_my_site.")
    (problem,) = problems_in_row(tmp_path, "meta_site", "a\tb")
    assert problem.startswith("row 5: meta_site 'a\\tb' has a line break, a tab")
    with pytest.raises(ManifestError, match="unknown column 'meta_my site'"):
        write_manifest(tmp_path / "mine.csv", [Clip("a", ("a.mp4",), "train", meta={"my site": "x"})])


@pytest.mark.parametrize("name", ["mine.csv", "mine.parquet"])
def test_further_splits_of_clips_are_read_and_written(tmp_path: Path, name: str) -> None:
    splits = [("train", "val"), ("val", "train"), ("test", None), ("unused", "test")]
    clips = [
        Clip(f"c{number}", (f"c{number}.mp4",), first, splits={"split2": second} if second else {})
        for number, (first, second) in enumerate(splits)
    ]
    write_manifest(tmp_path / name, clips)
    assert list(read_manifest(tmp_path / name)) == clips
    digest = clips_digest(tmp_path / name)
    write_manifest(tmp_path / name, [replace(clip, splits={}) for clip in clips])
    assert clips_digest(tmp_path / name) == digest


def test_further_splits_keep_the_rules_of_splits(tmp_path: Path) -> None:
    rows = (
        "a,a.mp4,train,g,train,test",
        "b,b.mp4,val,,val,val",
        "c,c.mp4,test,,test,dev",
        "d,d.mp4,train,g,unused,train",
    )
    header = "clip_id,source,split,group,split1,split2"
    torn, unknown = problems_of(manifest_of(tmp_path, *rows, header=header))
    assert torn.startswith("group 'g' is in train (row 5) and test (row 2). A group stays in one split")
    assert unknown == "row 4: split2 'dev' is unknown. Available: train, val, test."


def test_columns_of_ones_own_do_not_move_the_digest_of_the_clips(tmp_path: Path) -> None:
    path = manifest_of(tmp_path, *GOOD_ROWS)
    before = clips_digest(path)
    manifest_of(tmp_path, *(f"{row},1" for row in GOOD_ROWS), header="clip_id,source,split,meta_camera")
    assert clips_digest(path) == before
    manifest_of(tmp_path, *(f"{row},1" for row in GOOD_ROWS), header="clip_id,source,split,label")
    assert clips_digest(path) != before
    manifest_of(tmp_path, *reversed(GOOD_ROWS))
    assert clips_digest(path) != before
    write_manifest(tmp_path / "mine.parquet", reversed(list(read_manifest(path))))
    assert clips_digest(tmp_path / "mine.parquet") == before


def test_a_manifest_without_clips_is_refused(tmp_path: Path) -> None:
    assert len(problems_of(manifest_of(tmp_path))) == 3  # each split is empty


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("none.csv", None, "No manifest"),
        ("manifest.txt", b"", "a .csv or a .parquet"),
        ("text.parquet", b"hello", "can't be read as Parquet"),
    ],
)
def test_a_file_that_is_no_manifest_gives_one_message(
    tmp_path: Path, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=complaint):
        read_manifest(tmp_path / name)


def test_parquet_from_other_tools_is_read(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    table = pa.table(
        {
            "clip_id": pa.array([7, 8, 9]),
            "source": pa.array(["a", "b", "c"], pa.large_string()),
            "split": pa.array(["train", "val", "test"]).dictionary_encode(),
            "value": pa.array([1, None, 3], pa.int32()),
            "end_seconds": pa.array([float("nan"), 2.0, 3.0]),
        }
    )
    pa.parquet.write_table(table, path)
    clips = read_manifest(path).clips()
    assert [clip.clip_id for clip in clips] == ["7", "8", "9"]
    assert [clip.values for clip in clips] == [(1.0,), (), (3.0,)]
    assert [clip.end_seconds for clip in clips] == [None, 2.0, 3.0]


def test_parquet_columns_of_a_wrong_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    table = pa.table({"clip_id": ["a"], "source": [["a.png"]], "split": ["train"]})
    pa.parquet.write_table(table, path)
    assert "column 'source' is of type list<" in problems_of(path)[0]


def test_missing_sources_are_all_named_with_their_rows(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "folder").mkdir()
    path = manifest_of(tmp_path, "a,a.mp4,train", "b,b.mp4,val", "c,folder,test", "d,a.mp4|e.png,train")
    with pytest.raises(ManifestError) as caught:
        check_sources(read_manifest(path), root=tmp_path)
    heading, *problems = str(caught.value).split("\n  ")
    assert heading == f"{tmp_path}: 2 problems"
    assert problems[0].startswith("row 3: source b.mp4 does not exist.")
    assert problems[1].startswith("row 5: source e.png does not exist.")
    (tmp_path / "b.mp4").touch()
    (tmp_path / "e.png").touch()
    check_sources(read_manifest(path), root=tmp_path)


def test_groups_in_several_splits_are_one_problem_with_the_remedy(tmp_path: Path) -> None:
    rows = [
        f"{i},{i}.mp4,{'train' if i < 7 or i > 20 else 'test'},g{i % 2 if i < 21 else i}" for i in range(25)
    ]
    (problem,) = problems_of(manifest_of(tmp_path, *rows, "x,x,val,", header="clip_id,source,split,group"))
    assert problem.startswith(
        "group 'g0' is in train (rows 2, 4, 6, 8) and test (rows 10, 12, 14, 16, 18, 20, 22); group 'g1'"
        " is in train (rows 3, 5, 7) and test (rows 9, 11, 13, 15, 17, 19, 21). A group stays in one"
    )
    with pytest.raises(TornGroupError):
        read_manifest(tmp_path / "manifest.csv")


def test_clips_of_test_that_are_also_in_val_are_one_problem_for_each_column_of_splits(tmp_path: Path) -> None:
    rows = [
        "a,x,,,train,train",
        "b,y,0,1,val,train",
        "c,y,,1,test,test",
        "d,y,1,2,test,val",
        "e,y,1,2,test,test",
        "f,z,,,unused,val",
    ]
    header = "clip_id,source,start_seconds,end_seconds,split,split1"
    reason = "with the same source and times: {}. The epoch is chosen on val, so test has to be other clips."
    assert problems_of(manifest_of(tmp_path, *rows, header=header)) == [
        f"split has 1 clip of test also in val, {reason.format('c')}",
        f"split1 has 1 clip of test also in val, {reason.format('e')}",
    ]


def test_a_manifest_is_text_by_its_byte_order_mark_or_utf_8(tmp_path: Path) -> None:
    text = "clip_id,source,split,label\na,a,train,Käfig\nb,b,val,\nc,c,test,\n"
    path = tmp_path / "manifest.csv"
    for data in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16")):
        path.write_bytes(data)
        assert [clip.label for clip in read_manifest(path)] == ["Käfig", None, None]
    path.write_bytes(text.encode("cp1252"))
    with pytest.raises(TextFileError, match=r"manifest\.csv: line 2 is not UTF-8"):
        read_manifest(path)
    path.write_bytes(b"")
    with pytest.raises(TextFileError, match=r"manifest\.csv is empty"):
        read_manifest(path)


def test_rows_of_a_manifest_are_lines_and_open_quotes_are_found(tmp_path: Path) -> None:
    rows = ['a,a,train,"two\nlines"', "b,b,val,", "c,c,test,", "a,d,train,"]
    problems = problems_of(manifest_of(tmp_path, *rows, header="clip_id,source,split,caption"))
    assert problems == ["row 6: clip_id 'a' is already in row 2. Ids are unique."]
    rows = [*GOOD_ROWS, 'd,"d.mp4,train', "e,e.mp4,train"]
    assert problems_of(manifest_of(tmp_path, *rows))[0].startswith(
        "row 5: a quote is opened, and never closed"
    )


def test_sources_that_were_not_fetched_are_one_problem_a_kind(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    for name in ("a.mp4", "b.mp4", "frames/1.png"):
        (tmp_path / name).symlink_to(".git/annex/objects/Xx/9k/SHA256E-s1--00/SHA256E-s1--00")
    (tmp_path / "c.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    (tmp_path / "d.mp4").symlink_to(f"/data/cache/files/md5/ab/{'0' * 30}")
    (tmp_path / "disk").symlink_to("/nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    sources = ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "disk/e.mp4", "frames", "loop.mp4", "f.mp4", "d.mp4/x.png"]
    splits = ["train", "val", "test", *["train"] * 6]
    rows = [f"{i},{source},{split}" for i, (source, split) in enumerate(zip(sources, splits, strict=True))]
    with pytest.raises(ManifestError) as caught:
        check_sources(read_manifest(manifest_of(tmp_path, *rows)), root=tmp_path)
    assert str(caught.value).split("\n  ")[1:] == [
        "row 2: source a.mp4 was not fetched by git-annex: its content is not on this machine (and so b.mp4,"
        " frames). Run `git annex get .` (or `datalad get .`) in the corpus's folder.",
        "row 4: source c.mp4 was not fetched by Git LFS: the file is only a pointer. Run `git lfs pull` in"
        " the corpus's folder.",
        "row 5: source d.mp4 was not fetched by DVC: it links to a file that is not in DVC's cache (and so"
        " d.mp4/x.png). Run `dvc pull` in the corpus's repository.",
        "row 6: source disk/e.mp4 lies in 'disk', which is a link to '/nowhere', which is not there. Mount"
        " or fetch what it links to, or take the link away.",
        "row 8: source loop.mp4 can't be opened: Too many levels of symbolic links. Correct its permissions"
        " or its links.",
        "row 9: source f.mp4 does not exist. Correct it, or the corpus's root.",
    ]


texts = st.text(
    st.characters(codec="utf-8", exclude_characters="|", exclude_categories=["C", "Z"]), min_size=1
)
seconds = st.floats(0, 1e6).map(lambda x: x + 0.0)
intervals = st.lists(seconds, unique=True, max_size=6).map(
    lambda times: list(zip(sorted(times)[::2], sorted(times)[1::2], strict=False))
)


@st.composite
def some_clips(draw: st.DrawFn) -> list[Clip]:
    splits = ["train", "val", "test", *draw(st.lists(st.sampled_from(["train", "val", "test"]), max_size=3))]
    return [
        Clip(
            clip_id=f"{index}{draw(texts)}",
            sources=tuple(
                f"{split}{i}{text}" for i, text in enumerate(draw(st.lists(texts, min_size=1, max_size=3)))
            ),
            split=split,
            start_seconds=draw(st.none() | seconds),
            end_seconds=draw(st.none() | seconds.map(lambda x: x + 2e6)),
            group=f"{split}{draw(texts)}",
            label=draw(st.none() | texts),
            captions=tuple(draw(st.lists(texts, max_size=2))),
            values=tuple(draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3))),
            frame_labels=tuple(FrameLabel(*times, draw(texts)) for times in draw(intervals)),
            questions=tuple(
                Question(question, "yes")
                for question in draw(st.lists(texts.filter(lambda text: "=" not in text), max_size=2))
            ),
            image_fps=draw(st.floats(0.1, 100)),
        )
        for index, split in enumerate(splits)
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    @settings(deadline=None, max_examples=20)
    @given(some_clips())
    def round_trip(clips: list[Clip]) -> None:
        path = tmp_path / f"manifest{suffix}"
        write_manifest(path, clips)
        written = path.read_bytes()
        assert list(read_manifest(path)) == clips
        write_manifest(path, clips)
        assert path.read_bytes() == written

    round_trip()


def test_questions_are_pairs_of_a_question_and_its_answer(tmp_path: Path) -> None:
    rows = ["a,a,train,which digit? = two|does it move up?=no", "b,b,val,", "c,c,test,why?=because"]
    manifest = read_manifest(manifest_of(tmp_path, *rows, header="clip_id,source,split,questions"))
    assert [clip.questions for clip in manifest] == [
        (Question("which digit?", "two"), Question("does it move up?", "no")),
        (),
        (Question("why?", "because"),),
    ]


def test_unused_columns_are_not_written(tmp_path: Path) -> None:
    clips = [
        Clip(clip_id=split, sources=(f"{split}.mp4",), split=split, label="l")
        for split in ("train", "val", "test")
    ]
    write_manifest(tmp_path / "manifest.csv", clips)
    assert (tmp_path / "manifest.csv").read_text() == (
        "clip_id,source,split,label\ntrain,train.mp4,train,l\nval,val.mp4,val,l\ntest,test.mp4,test,l\n"
    )


def test_clips_that_could_not_be_read_again_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    clips = [Clip(clip_id=split, sources=("x",), split=split) for split in ("train", "val", "test")]
    with pytest.raises(ManifestError, match="row 5: clip_id 'val' is already in row 3"):
        write_manifest(path, [*clips, clips[1]])
    with pytest.raises(ManifestError, match="holds the separator"):
        write_manifest(path, [*clips[:2], dataclasses.replace(clips[2], captions=("a|b",))])
    assert not path.exists()
