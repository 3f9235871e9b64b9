"""The store, without a network: what is written is what any tool reads, and damage or kills never lie."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import dask.array
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import MissingClipError, StoreError
from pipeline.store import Journal, ShardWriter, committing, open_view, stored_clips
from pipeline.store.containers import CONTAINERS
from tests.features import (
    MAP_SHAPE,
    clip_maps,
    clip_source,
    fill,
    frame_times,
    make_contract,
    make_layout,
    make_view,
    publish_clips,
)

CLIPS = {"walk": 5, "blink": 1, "long": 70, "exact": 32, "run": 12}


def test_view_returns_every_clip_bit_for_bit(tmp_path: Path) -> None:
    with open_view(make_view(tmp_path, CLIPS)) as view:
        assert view.clip_ids() == sorted(CLIPS)
        assert len(view) == len(CLIPS)
        for clip_id, num_frames in CLIPS.items():
            np.testing.assert_array_equal(view.read(clip_id), clip_maps(clip_id, num_frames))
            np.testing.assert_array_equal(view.frame_seconds(clip_id), frame_times(num_frames))
            assert view.num_frames(clip_id) == num_frames


def test_plain_zarr_and_dask_read_the_same_rows_and_nan_elsewhere(tmp_path: Path) -> None:
    path = make_view(tmp_path, CLIPS)
    array = zarr.open_array(path, mode="r")
    assert array.shape[1:] == MAP_SHAPE
    assert array.dtype == np.float16
    rows = array[:]
    used = ~np.isnan(rows).any(axis=(1, 2, 3))
    assert used.sum() == sum(CLIPS.values())
    expected = {maps.tobytes() for clip_id, n in CLIPS.items() for maps in clip_maps(clip_id, n)}
    assert {row.tobytes() for row in rows[used]} == expected
    assert np.isnan(rows[~used]).all()
    np.testing.assert_array_equal(dask.array.from_zarr(str(path)).compute(), rows)
    assert array.attrs["contract"] == make_contract().model_dump(mode="json")


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_interleaving_of_appends_reads_back(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    clips = {f"clip{i}": n for i, n in enumerate(data.draw(st.lists(st.integers(1, 40), max_size=5)))}
    contract = make_contract()
    layout = make_layout(contract, rows_per_chunk=3, rows_per_shard=12)
    path = tmp_path_factory.mktemp("store")
    journal = Journal(path / "journal")
    writer = ShardWriter(
        journal.directory(contract, layout), contract=contract, layout=layout, commit_seconds=1e9
    )
    written = dict.fromkeys(clips, 0)
    with committing(writer):
        while unfinished := [clip_id for clip_id in clips if written[clip_id] < clips[clip_id]]:
            clip_id = data.draw(st.sampled_from(unfinished))
            first = written[clip_id]
            last = data.draw(st.integers(first + 1, clips[clip_id]))
            maps, times = clip_maps(clip_id, clips[clip_id]), frame_times(clips[clip_id])
            final = last == clips[clip_id]
            writer.append(clip_source(clip_id), maps[first:last], times[first:last], final=final)
            written[clip_id] = last
            if data.draw(st.booleans()):
                writer.commit()
    with open_view(publish_clips(journal, contract, layout, list(clips), path / "features")) as view:
        for clip_id, num_frames in clips.items():
            np.testing.assert_array_equal(view.read(clip_id), clip_maps(clip_id, num_frames))
            np.testing.assert_array_equal(view.frame_seconds(clip_id), frame_times(num_frames))


@given(first=st.integers(0, 69), count=st.integers(1, 70))
@settings(max_examples=50, deadline=None)
def test_partial_reads_are_slices(first: int, count: int, long_view: Path) -> None:
    count = min(count, 70 - first)
    with open_view(long_view) as view:
        part = view.read("long", first_frame=first, num_frames=count)
    np.testing.assert_array_equal(part, clip_maps("long", 70)[first : first + count])


@pytest.fixture(scope="session")
def long_view(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_view(tmp_path_factory.mktemp("long"), {"a": 5, "long": 70})


def test_reading_frames_that_a_clip_does_not_have_is_refused(tmp_path: Path) -> None:
    with open_view(make_view(tmp_path, CLIPS)) as view:
        with pytest.raises(ValueError, match="has frames 0 to 4, not 3 to 6"):
            view.read("walk", first_frame=3, num_frames=4)
        with pytest.raises(MissingClipError, match="Clip 'nobody' has no features"):
            view.read("nobody")


def test_the_view_is_hardlinks_and_its_bytes_depend_only_on_content(tmp_path: Path) -> None:
    contract = make_contract()
    layout = make_layout(contract)
    journal = Journal(tmp_path / "journal")
    fill(journal, contract, layout, CLIPS)
    first = publish_clips(journal, contract, layout, list(CLIPS), tmp_path / "one")
    second = publish_clips(journal, contract, layout, list(reversed(CLIPS)), tmp_path / "two")
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert (first / CONTAINERS["zarr"].shard_path(0)).samefile(second / CONTAINERS["zarr"].shard_path(0))
    assert (first / CONTAINERS["zarr"].shard_path(0)).stat().st_nlink == 3


def test_a_removed_clip_leaves_the_index_and_an_unneeded_shard_leaves_the_view(tmp_path: Path) -> None:
    contract = make_contract()
    layout = make_layout(contract)
    journal = Journal(tmp_path / "journal")
    fill(journal, contract, layout, {"a": 3})
    fill(journal, contract, layout, {"b": 4, "c": 2})
    with open_view(publish_clips(journal, contract, layout, ["b"], tmp_path / "features")) as view:
        assert view.clip_ids() == ["b"]
        np.testing.assert_array_equal(view.read("b"), clip_maps("b", 4))
        assert len(list((view.path / "records").iterdir())) == 1


def test_an_open_view_keeps_reading_its_own_version_during_a_publication(tmp_path: Path) -> None:
    contract = make_contract()
    layout = make_layout(contract)
    journal = Journal(tmp_path / "journal")
    fill(journal, contract, layout, {"a": 30})
    path = publish_clips(journal, contract, layout, ["a"], tmp_path / "features")
    with open_view(path) as old:
        fill(journal, contract, layout, {"b": 30})
        publish_clips(journal, contract, layout, ["b"], tmp_path / "features")
        np.testing.assert_array_equal(old.read("a"), clip_maps("a", 30))
        assert "b" not in old
    with open_view(path) as new:
        assert new.clip_ids() == ["b"]


def test_readers_during_publications_see_one_version_whole(tmp_path: Path) -> None:
    contract = make_contract()
    layout = make_layout(contract)
    journal = Journal(tmp_path / "journal")
    versions = [{f"{v}{i}": 5 for i in range(4)} for v in ("old", "new")]
    for version in versions:
        fill(journal, contract, layout, version)
    path = publish_clips(journal, contract, layout, list(versions[0]), tmp_path / "features")
    stop = threading.Event()

    def republish() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            publish_clips(journal, contract, layout, list(versions[turn % 2]), tmp_path / "features")

    thread = threading.Thread(target=republish)
    thread.start()
    seen = set()
    try:
        while len(seen) < 2:
            with open_view(path) as view:
                ids = tuple(view.clip_ids())
                assert ids in {tuple(sorted(version)) for version in versions}
                for clip_id in ids:
                    np.testing.assert_array_equal(view.read(clip_id), clip_maps(clip_id, 5))
                seen.add(ids)
    finally:
        stop.set()
        thread.join()


def test_a_clip_whose_rows_were_dropped_does_not_exist(tmp_path: Path) -> None:
    contract = make_contract()
    layout = make_layout(contract)
    journal = Journal(tmp_path / "journal")
    writer = ShardWriter(
        journal.directory(contract, layout), contract=contract, layout=layout, commit_seconds=1e9
    )
    with committing(writer):
        writer.append(clip_source("bad"), clip_maps("bad", 9), frame_times(9), final=False)
        writer.append(clip_source("good"), clip_maps("good", 6), frame_times(6), final=True)
        writer.drop(clip_source("bad"))
    assert set(stored_clips(journal.records(contract, layout).values())) == {clip_source("good").key}


def test_a_clip_cut_off_in_the_middle_is_not_complete(tmp_path: Path) -> None:
    contract = make_contract()
    layout = make_layout(contract)
    journal = Journal(tmp_path / "journal")
    writer = ShardWriter(
        journal.directory(contract, layout), contract=contract, layout=layout, commit_seconds=1e9
    )
    writer.append(clip_source("long"), clip_maps("long", 50), frame_times(50), final=False)
    writer.abandon()
    assert len(journal.records(contract, layout)) == 1
    assert stored_clips(journal.records(contract, layout).values()) == {}
    fill(journal, contract, layout, {"long": 70})
    with open_view(publish_clips(journal, contract, layout, ["long"], tmp_path / "features")) as view:
        np.testing.assert_array_equal(view.read("long"), clip_maps("long", 70))


def test_a_shard_is_committed_when_it_is_old(tmp_path: Path) -> None:
    contract = make_contract()
    layout = make_layout(contract)
    journal = Journal(tmp_path / "journal")
    now = 0.0
    writer = ShardWriter(
        journal.directory(contract, layout),
        contract=contract,
        layout=layout,
        commit_seconds=60,
        clock=lambda: now,
    )
    writer.append(clip_source("a"), clip_maps("a", 2), frame_times(2), final=True)
    assert not journal.records(contract, layout)
    now = 61.0
    writer.append(clip_source("b"), clip_maps("b", 2), frame_times(2), final=True)
    assert set(stored_clips(journal.records(contract, layout).values())) == {
        clip_source("a").key,
        clip_source("b").key,
    }
    writer.abandon()


KILLED_WRITER = textwrap.dedent("""
    import sys
    from pathlib import Path
    from pipeline.store import Journal, ShardWriter
    from tests.features import *
    contract, journal = make_contract(), Journal(Path(sys.argv[1]))
    layout = make_layout(contract, rows_per_chunk=2, rows_per_shard=8)
    directory = journal.directory(contract, layout)
    writer = ShardWriter(directory, contract=contract, layout=layout, commit_seconds=1e9)
    known = stored_clips(journal.records(contract, layout).values())
    for number in range(60):
        source = clip_source(f"clip{number}")
        if source.key not in known:
            writer.append(source, clip_maps(source.clip_id, 5), frame_times(5), final=True)
            print(number, flush=True)
    writer.commit()
""")


def test_a_writer_killed_at_any_moment_loses_nothing_committed(tmp_path: Path) -> None:
    contract = make_contract()
    layout = make_layout(contract, rows_per_chunk=2, rows_per_shard=8)
    committed: set[bytes] = set()
    for stop_after in (3, 11, 20, 27):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "journal")],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= stop_after + len(committed):
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        journal = Journal(tmp_path / "journal")
        now = set(stored_clips(journal.records(contract, layout).values()))
        assert committed <= now
        committed = now
        assert committed
    subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path / "journal")], check=True)
    names = [f"clip{number}" for number in range(60)]
    with open_view(
        publish_clips(Journal(tmp_path / "journal"), contract, layout, names, tmp_path / "features")
    ) as view:
        for name in names:
            np.testing.assert_array_equal(view.read(name), clip_maps(name, 5))


def test_a_flipped_bit_in_a_shard_raises_and_names_shard_and_clip(tmp_path: Path) -> None:
    path = make_view(tmp_path, {"walk": 5})
    shard = path / CONTAINERS["zarr"].shard_path(0)
    data = bytearray(shard.read_bytes())
    data[17] ^= 4
    shard.write_bytes(data)
    with open_view(path) as view, pytest.raises(StoreError, match=r"Shard [0-9a-f]{32} .*clip 'walk'"):
        view.read("walk")


@pytest.mark.parametrize("name", ["index.arrow", "times.arrow", "chunks.arrow"])
def test_a_flipped_bit_in_a_table_raises(tmp_path: Path, name: str) -> None:
    path = make_view(tmp_path, {"walk": 5})
    file = path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    def read_everything() -> None:
        with open_view(path) as view:
            view.read("walk")
            view.frame_seconds("walk")

    with pytest.raises(StoreError, match="is damaged"):
        read_everything()


def test_a_flipped_bit_in_a_record_raises(tmp_path: Path) -> None:
    make_view(tmp_path, {"walk": 5})
    contract = make_contract()
    journal = Journal(tmp_path / "journal")
    record = next(journal.directory(contract, make_layout(contract)).glob("*.record"))
    data = bytearray(record.read_bytes())
    data[len(data) // 2] ^= 1
    record.write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        journal.records(contract, make_layout(contract))


def test_what_is_not_a_view_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Run `dvc repro extract`"):
        open_view(tmp_path / "nowhere")
    zarr.create_array(tmp_path / "foreign", shape=(3,), dtype="float16")
    with pytest.raises(StoreError, match="no framecache view"):
        open_view(tmp_path / "foreign")
    path = make_view(tmp_path, {"walk": 5})
    (path / CONTAINERS["zarr"].shard_path(0)).unlink()
    with pytest.raises(StoreError, match="Run `dvc pull`"):
        open_view(path)


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    Journal(tmp_path)
    (tmp_path / "format.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(StoreError, match="format version 99"):
        Journal(tmp_path)


def test_adopted_shards_serve_like_their_own(tmp_path: Path) -> None:
    from stages.adoption import adopt_view

    contract = make_contract()
    layout = make_layout(contract)
    make_view(tmp_path, CLIPS)
    shutil.rmtree(tmp_path / "journal")
    journal = Journal(tmp_path / "fresh")
    adopt_view(journal, path=tmp_path / "features")
    with open_view(publish_clips(journal, contract, layout, list(CLIPS), tmp_path / "again")) as view:
        for clip_id, num_frames in CLIPS.items():
            np.testing.assert_array_equal(view.read(clip_id), clip_maps(clip_id, num_frames))


def test_the_lock_makes_a_second_process_wait_and_says_for_whom(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    waited: list[str] = []
    entered = threading.Event()

    def second() -> None:
        with Journal(tmp_path).lock("f" * 64, on_wait=waited.append):
            entered.set()

    with journal.lock("f" * 64, on_wait=waited.append):
        thread = threading.Thread(target=second)
        thread.start()
        while not waited:
            pass
        assert not entered.is_set()
    thread.join()
    assert entered.is_set()
    assert waited == [f"process {os.getpid()} on {os.uname().nodename}, in {Path.cwd()}"]
