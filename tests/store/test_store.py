"""The store, without a network: what is written is what any tool reads, whatever the container and codec."""

import os
import shutil
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import MissingClipError, MissingFeaturesError
from pipeline.extraction.adoption import adopt_files, view_files
from pipeline.store import Journal, Layout, ShardWriter, committing, open_view, stored_clips, stored_keys
from tests.support.features import (
    CODECS,
    FORMATS,
    MAP_SHAPE,
    assert_holds,
    clip_maps,
    clip_source,
    fill,
    frame_times,
    make_contract,
    make_journal,
    make_layout,
    make_view,
    make_writer,
    publish_clips,
    read_plainly,
    read_with_dask,
    shard_files,
)

pytestmark = pytest.mark.slow

CLIPS = {"walk": 5, "blink": 1, "long": 70, "exact": 32, "run": 12}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("container", FORMATS)
class TestStore:
    """What every container with every codec promises."""

    @pytest.fixture
    def layout(self, container: str, codec: str) -> Layout:
        return make_layout(make_contract(), format=container, codec=codec)

    @pytest.fixture
    def path(self, tmp_path: Path, container: str, codec: str) -> Path:
        """A view of CLIPS, in several shards."""
        return make_view(tmp_path, CLIPS, format=container, codec=codec)

    def test_view_returns_every_clip_bit_for_bit(self, path: Path) -> None:
        assert_holds(path, CLIPS)
        with open_view(path) as view:
            assert len(view) == len(CLIPS)
            assert {clip_id: view.num_frames(clip_id) for clip_id in view.clip_ids()} == CLIPS

    def test_plain_tools_read_the_same_rows_and_nan_elsewhere(self, path: Path) -> None:
        rows, contract = read_plainly(path)
        assert rows.shape[1:] == MAP_SHAPE
        assert rows.dtype == np.float16
        used = ~np.isnan(rows).any(axis=(1, 2, 3))
        assert used.sum() == sum(CLIPS.values())
        expected = {maps.tobytes() for clip_id, n in CLIPS.items() for maps in clip_maps(clip_id, n)}
        assert {row.tobytes() for row in rows[used]} == expected
        assert np.isnan(rows[~used]).all()
        np.testing.assert_array_equal(read_with_dask(path), rows)
        assert contract == make_contract().model_dump(mode="json")

    def test_a_missing_shard_is_nan_to_plain_tools_and_an_error_here(
        self, path: Path, layout: Layout
    ) -> None:
        whole, _ = read_plainly(path)
        shard_files(path)[1].unlink()
        rows, _ = read_plainly(path)
        missing = slice(layout.rows_per_shard, 2 * layout.rows_per_shard)
        assert np.isnan(rows[missing]).all()
        np.testing.assert_array_equal(np.delete(rows, missing, 0), np.delete(whole, missing, 0))
        with pytest.raises(MissingFeaturesError, match="is missing"):
            open_view(path)

    @settings(max_examples=12, deadline=None)
    @given(data=st.data())
    def test_any_interleaving_of_appends_reads_back(
        self, data: st.DataObject, container: str, codec: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        clips = {f"clip{i}": n for i, n in enumerate(data.draw(st.lists(st.integers(1, 40), max_size=5)))}
        contract = make_contract()
        layout = make_layout(contract, rows_per_chunk=3, rows_per_shard=12, format=container, codec=codec)
        folder = tmp_path_factory.mktemp("store")
        journal = Journal(folder / "journal")
        writer = make_writer(journal, contract, layout)
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
        records = journal.records(contract, layout).values()
        assert stored_keys(records) == set(stored_clips(records)) == {clip_source(name).key for name in clips}
        assert_holds(publish_clips(journal, contract, layout, list(clips), folder / "features"), clips)

    def test_partial_reads_are_slices(self, path: Path) -> None:
        maps = clip_maps("long", 70)
        with open_view(path) as view:
            for first in range(70):
                for count in (1, 3, 4, 5, 33, 70 - first):
                    count = min(count, 70 - first)
                    part = view.read("long", first_frame=first, num_frames=count)
                    np.testing.assert_array_equal(part, maps[first : first + count])

    def test_a_clip_larger_than_one_read_comes_in_pieces(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("pipeline.store.format.rows._PIECE_BYTES", 7 * clip_maps("long", 1).nbytes)
        with open_view(path) as view:
            np.testing.assert_array_equal(
                view.read("long", first_frame=3, num_frames=60), clip_maps("long", 70)[3:63]
            )

    def test_the_view_is_hardlinks_and_its_bytes_depend_only_on_content(
        self, tmp_path: Path, layout: Layout
    ) -> None:
        contract = make_contract()
        journal = Journal(tmp_path / "journal")
        fill(journal, contract, layout, CLIPS)
        first = publish_clips(journal, contract, layout, list(CLIPS), tmp_path / "one")
        second = publish_clips(journal, contract, layout, list(reversed(CLIPS)), tmp_path / "two")
        files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
        for name in files:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
        for mine, theirs in zip(shard_files(first), shard_files(second), strict=True):
            assert mine.samefile(theirs)
            assert mine.stat().st_nlink == 3

    def test_an_open_view_keeps_reading_its_own_version_during_a_publication(
        self, tmp_path: Path, layout: Layout
    ) -> None:
        contract = make_contract()
        journal = Journal(tmp_path / "journal")
        fill(journal, contract, layout, {"a": 30})
        path = publish_clips(journal, contract, layout, ["a"], tmp_path / "features")
        with open_view(path) as old:
            fill(journal, contract, layout, {"b": 30})
            publish_clips(journal, contract, layout, ["b"], tmp_path / "features")
            np.testing.assert_array_equal(old.read("a"), clip_maps("a", 30))
            assert "b" not in old
        assert_holds(path, {"b": 30})

    def test_adopted_shards_serve_like_their_own(self, tmp_path: Path, path: Path, layout: Layout) -> None:
        shutil.rmtree(tmp_path / "journal")
        journal = Journal(tmp_path / "fresh")
        adopt_files(journal, view_files(path.parent))
        again = publish_clips(journal, make_contract(), layout, list(CLIPS), tmp_path / "again")
        assert_holds(again, CLIPS)


@pytest.mark.parametrize("clips", [{}, {"walk": 5}])
def test_hdf5_files_hold_no_time_of_writing(tmp_path: Path, clips: dict[str, int]) -> None:
    make_view(tmp_path, clips, format="hdf5")
    files = sorted(tmp_path.rglob("*.h5"))
    assert len(files) == (3 if clips else 1)  # the master, the shard in the journal and in the view
    for path in files:
        with h5py.File(path) as file:
            assert h5py.h5o.get_info(file["features"].id).mtime == 0


def test_reading_frames_that_a_clip_does_not_have_is_refused(tmp_path: Path) -> None:
    with open_view(make_view(tmp_path, CLIPS)) as view:
        with pytest.raises(ValueError, match="has frames 0 to 4, not 3 to 6"):
            view.read("walk", first_frame=3, num_frames=4)
        with pytest.raises(MissingClipError, match="Clip 'nobody' has no features"):
            view.read("nobody")


def test_a_removed_clip_leaves_the_index_and_an_unneeded_shard_leaves_the_view(tmp_path: Path) -> None:
    journal, contract, layout = make_journal(tmp_path / "journal", {"a": 3})
    fill(journal, contract, layout, {"b": 4, "c": 2})
    with open_view(publish_clips(journal, contract, layout, ["b"], tmp_path / "features")) as view:
        assert view.clip_ids() == ["b"]
        np.testing.assert_array_equal(view.read("b"), clip_maps("b", 4))
        assert len(list((view.path / "records").iterdir())) == 1


def test_readers_during_publications_see_one_version_whole(tmp_path: Path) -> None:
    journal, contract, layout = make_journal(tmp_path / "journal")
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
    journal, contract, layout = make_journal(tmp_path / "journal")
    writer = make_writer(journal, contract, layout)
    with committing(writer):
        writer.append(clip_source("bad"), clip_maps("bad", 9), frame_times(9), final=False)
        writer.append(clip_source("good"), clip_maps("good", 6), frame_times(6), final=True)
        writer.drop(clip_source("bad"))
    assert set(stored_clips(journal.records(contract, layout).values())) == {clip_source("good").key}


def test_what_ends_a_run_does_not_cost_the_clips_that_are_complete(tmp_path: Path) -> None:
    journal, contract, layout = make_journal(tmp_path / "journal")
    writer = make_writer(journal, contract, layout)

    def write() -> None:
        with committing(writer):
            writer.append(clip_source("begun"), clip_maps("begun", 2), frame_times(2), final=False)
            writer.append(clip_source("whole"), clip_maps("whole", 3), frame_times(3), final=True)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    (record,) = journal.records(contract, layout).values()
    assert record.spans["clip_id"].to_pylist() == ["whole"]
    assert_holds(publish_clips(journal, contract, layout, ["whole"], tmp_path / "features"), {"whole": 3})


def test_a_shard_whose_writing_failed_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, contract, layout = make_journal(tmp_path / "journal")
    writer = make_writer(journal, contract, layout)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk on fire")

    def write() -> None:
        with committing(writer):
            writer.append(clip_source("whole"), clip_maps("whole", 3), frame_times(3), final=True)
            monkeypatch.setattr("pipeline.store.shards.encode", fail)
            writer.append(clip_source("next"), clip_maps("next", 30), frame_times(30), final=True)

    with pytest.raises(OSError, match="disk on fire"):
        write()
    assert not journal.records(contract, layout)
    assert not list(journal.directory(contract, layout).glob("*shard*"))


def test_a_clip_cut_off_in_the_middle_is_not_complete(tmp_path: Path) -> None:
    journal, contract, layout = make_journal(tmp_path / "journal")
    writer = make_writer(journal, contract, layout)
    writer.append(clip_source("long"), clip_maps("long", 50), frame_times(50), final=False)
    writer.abandon()
    assert len(journal.records(contract, layout)) == 1
    assert stored_clips(journal.records(contract, layout).values()) == {}
    assert stored_keys(journal.records(contract, layout).values()) == set()
    fill(journal, contract, layout, {"long": 70})
    assert_holds(publish_clips(journal, contract, layout, ["long"], tmp_path / "features"), {"long": 70})


def test_a_shard_is_committed_when_it_is_old(tmp_path: Path) -> None:
    journal, contract, layout = make_journal(tmp_path / "journal")
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
    writer.abandon()  # waits for what is being committed
    assert set(stored_clips(journal.records(contract, layout).values())) == {
        clip_source("a").key,
        clip_source("b").key,
    }


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


def test_published_files_are_read_only_for_their_owner(tmp_path: Path) -> None:
    """Two runs of DVC that add one file to its cache at once would empty it: see `protect`."""
    contract = make_contract()
    journal = Journal(tmp_path / "journal")
    fill(journal, contract, make_layout(contract), {"walk": 5})
    files = [path for path in journal.path.rglob("*") if path.suffix in {".shard", ".record"}]
    assert [path.stat().st_mode & 0o202 for path in files] == [0, 0]
