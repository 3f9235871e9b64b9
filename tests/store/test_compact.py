"""Rows of no clip: few are left in a view, and which are whose is what any tool reads."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.extraction import Target, publish_view
from pipeline.store import Journal, Layout, committing, open_view
from pipeline.store.upkeep.gc import Need, find_garbage, remove_garbage
from tests.support.features import (
    CODECS,
    FORMATS,
    assert_holds,
    clip_maps,
    clip_source,
    fill,
    frame_times,
    make_contract,
    make_journal,
    make_layout,
    make_writer,
    read_plainly,
    shard_files,
)

CONTRACT = make_contract()
CLIPS = {"a": 5, "b": 13, "c": 9}  # 27 of a shard's 32 rows


def publish_clips(journal: Journal, layout: Layout, clips: Mapping[str, str], path: Path) -> Path:
    """Publish clips, given as {clip id: whose features they are}, as an extraction does; the tap's folder."""
    keys = {clip_id: clip_source(name).key for clip_id, name in clips.items()}
    publish_view(keys, targets=[Target(CONTRACT, layout)], journal=journal, path=path / "features")
    return path / "features" / CONTRACT.tap


def publish_same(journal: Journal, layout: Layout, clip_ids: object, path: Path) -> Path:
    return publish_clips(journal, layout, {clip_id: clip_id for clip_id in clip_ids}, path)  # type: ignore[attr-defined]


def contents(path: Path) -> dict[str, bytes]:
    """What the files of a view hold, by their path in it."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def num_rows_with_values(path: Path) -> int:
    rows, _ = read_plainly(path)
    return int((~np.isnan(rows).all(axis=(1, 2, 3))).sum())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("form", FORMATS)
def test_after_one_clip_was_deleted_and_one_changed_all_rows_are_somebodys(
    tmp_path: Path, form: str, codec: str
) -> None:
    journal, _, layout = make_journal(tmp_path / "journal", CLIPS, format=form, codec=codec)
    path = publish_same(journal, layout, CLIPS, tmp_path)
    assert num_rows_with_values(path) == 5 + 13 + 9

    fill(journal, CONTRACT, layout, {"changed": 7})
    path = publish_clips(journal, layout, {"a": "a", "b": "changed"}, tmp_path)  # else 22 of 34 are nobody's
    rows, _ = read_plainly(path)
    assert len(rows) == 2 * 32
    assert num_rows_with_values(path) == 5 + 7
    lines = pq.read_table(path / "clips.parquet").to_pylist()
    assert sorted((line["clip_id"], line["row"] % 32, line["num_rows"]) for line in lines) == [
        ("a", 0, 5),
        ("b", 0, 7),
    ]
    for line in lines:
        name = {"a": "a", "b": "changed"}[line["clip_id"]]
        expected = clip_maps(name, line["num_rows"])
        np.testing.assert_array_equal(rows[line["row"] : line["row"] + line["num_rows"]], expected)
        np.testing.assert_array_equal(line["frame_seconds"], frame_times(line["num_rows"]))


def test_up_to_a_tenth_of_the_rows_stays_as_it_is(tmp_path: Path) -> None:
    journal, _, layout = make_journal(tmp_path / "journal", {"a": 20, "b": 4, "c": 16}, rows_per_shard=64)
    before = journal.records(CONTRACT, layout).keys()
    path = publish_same(journal, layout, ["a", "c"], tmp_path)
    assert journal.records(CONTRACT, layout).keys() == before
    assert num_rows_with_values(path) == 40
    assert_holds(path, {"a": 20, "c": 16})

    fill(journal, CONTRACT, layout, {"d": 5})
    publish_same(journal, layout, ["a", "b", "c", "d"], tmp_path)
    path = publish_same(journal, layout, ["a", "c", "d"], tmp_path)  # 4 of 45
    assert num_rows_with_values(path) == 45
    path = publish_same(journal, layout, ["c", "d"], tmp_path)
    assert num_rows_with_values(path) == 16 + 5


def test_only_shards_with_many_rows_of_no_clip_are_copied_and_only_once(tmp_path: Path) -> None:
    journal, _, layout = make_journal(
        tmp_path / "journal", {"full": 32, "mostly": 31, "gone": 1, "half": 16, "gone too": 16}
    )
    first = publish_same(journal, layout, ["full", "mostly", "half"], tmp_path / "one")
    assert num_rows_with_values(first) == 32 + 31 + 1 + 16  # 17 of 96 would have been nobody's
    records = journal.records(CONTRACT, layout)
    assert len(records) == 4
    assert sum(file.stat().st_nlink == 2 for file in shard_files(first)) == 3
    second = publish_same(journal, layout, ["full", "mostly", "half"], tmp_path / "two")
    assert journal.records(CONTRACT, layout).keys() == records.keys()
    assert contents(second.parent) == contents(first.parent)
    assert_holds(second, {"full": 32, "mostly": 31, "half": 16})


def test_a_clip_that_leaves_a_shard_takes_the_rows_it_has_in_others_along(tmp_path: Path) -> None:
    clips = {"gone": 20, "long": 40, "last": 4}  # long: 12 rows, and 28 of 32
    journal, _, layout = make_journal(tmp_path / "journal", clips)
    path = publish_same(journal, layout, ["long", "last"], tmp_path)
    assert num_rows_with_values(path) == 44
    assert_holds(path, {"long": 40, "last": 4})


def test_the_same_history_gives_the_same_bytes(tmp_path: Path) -> None:
    layout = make_layout(CONTRACT, codec="zstd")
    views = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        journal = Journal(folder / "journal")
        fill(journal, CONTRACT, layout, {**CLIPS, "long": 70})
        publish_same(journal, layout, [*CLIPS, "long"], folder)
        views.append(contents(publish_same(journal, layout, ["long", "a"], folder).parent))
    assert views[0] == views[1]


def test_a_manifest_that_is_as_it_was_gets_the_view_that_it_had(tmp_path: Path) -> None:
    journal, _, layout = make_journal(tmp_path / "journal", {**CLIPS, "d": 20, "e": 14})
    manifests = [[*CLIPS, "d", "e"], ["a", "c", "d"], ["b", "c"]]
    views = [contents(publish_same(journal, layout, names, tmp_path).parent) for names in manifests]
    num_shards = len(journal.records(CONTRACT, layout))
    for names, view in reversed([*zip(manifests, views, strict=True)]):
        assert contents(publish_same(journal, layout, names, tmp_path).parent) == view
    assert len(journal.records(CONTRACT, layout)) == num_shards


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_at_most_a_tenth_of_the_rows_is_nobodys_whatever_is_deleted_and_added(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store")
    layout = make_layout(CONTRACT, rows_per_chunk=2, rows_per_shard=8)
    journal = Journal(folder / "journal")
    clips: dict[str, int] = {}
    here: set[str] = set()
    for turn in range(data.draw(st.integers(1, 4), label="turns")):
        lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=6), label="new")
        new = {f"{turn}-{number}": length for number, length in enumerate(lengths)}
        fill(journal, CONTRACT, layout, new)
        clips |= new
        gone = data.draw(st.sets(st.sampled_from(sorted(here | new.keys()))), label="gone")
        back = data.draw(st.sets(st.sampled_from(sorted(clips))), label="back")
        here = (here | new.keys() | back) - gone
        path = publish_same(journal, layout, here, folder)
        num_used = sum(clips[clip_id] for clip_id in here)
        assert num_used >= 0.9 * num_rows_with_values(path)
        assert_holds(path, {clip_id: clips[clip_id] for clip_id in here})
        shards, view = journal.records(CONTRACT, layout).keys(), contents(path.parent)
        publish_same(journal, layout, here, folder)
        assert journal.records(CONTRACT, layout).keys() == shards
        assert contents(path.parent) == view


def test_rows_that_a_failed_clip_left_are_counted(tmp_path: Path) -> None:
    layout = make_layout(CONTRACT)
    journal = Journal(tmp_path / "journal")
    writer = make_writer(journal, CONTRACT, layout)
    with committing(writer):
        writer.append(clip_source("good"), clip_maps("good", 8), frame_times(8), final=True)
        writer.append(clip_source("bad"), clip_maps("bad", 20), frame_times(20), final=False)
        writer.drop(clip_source("bad"))
    path = publish_same(journal, layout, ["good"], tmp_path)
    assert num_rows_with_values(path) == 8


def test_a_read_only_journal_is_published_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _, layout = make_journal(tmp_path / "journal", CLIPS)
    monkeypatch.setattr(Journal, "is_read_only", True)
    path = publish_same(journal, layout, ["a"], tmp_path)
    assert len(journal.records(CONTRACT, layout)) == 1
    assert_holds(path, {"a": 5})


def test_a_clip_whose_rows_are_damaged_stays_where_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal, _, layout = make_journal(tmp_path / "journal", {"a": 4, "b": 12, "c": 8})
    (shard,) = journal.path.rglob("*.shard")
    data = bytearray(shard.read_bytes())
    data[3] ^= 1  # of a's only chunk
    shard.chmod(0o644)  # a published file is read-only
    shard.write_bytes(data)
    path = publish_same(journal, layout, ["a", "c"], tmp_path)
    assert "reading clip 'a'" in caplog.text
    with open_view(path) as view:
        np.testing.assert_array_equal(view.read("c"), clip_maps("c", 8))
        assert view.clip_ids() == ["a", "c"]
    records = journal.records(CONTRACT, layout)
    publish_same(journal, layout, ["a", "c"], tmp_path)
    assert journal.records(CONTRACT, layout).keys() == records.keys()


def test_gc_frees_the_shards_that_were_copied_from(tmp_path: Path) -> None:
    journal, _, layout = make_journal(tmp_path / "journal", CLIPS)
    (old,) = journal.records(CONTRACT, layout)
    path = publish_same(journal, layout, ["a", "c"], tmp_path)
    named = frozenset(record.stem for record in (path / "records").iterdir())
    assert old not in named
    needs = [Need("the view", named)]
    remove_garbage(journal, find_garbage(journal, needs, now_seconds=0, training_days=1))
    assert journal.records(CONTRACT, layout).keys() == named
    assert_holds(publish_same(journal, layout, ["a", "c"], tmp_path), {"a": 5, "c": 9})
