"""`extract` in a notebook, and what it does before it computes."""

import csv
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.backbone import Weights
from pipeline.backbone.weights import load_weights, save_weights
from pipeline.errors import JournalError, ManifestError, PipelineError, WeightsFileError
from pipeline.extraction import Extracted, Job, Progress, extract, make_job, run_job
from pipeline.extraction.adoption import adopt_files, view_files
from pipeline.extraction.prepare import prepare
from pipeline.manifest import SCHEMA, Clip, Manifest, read_manifest
from pipeline.manifest.clips import row_of_clip
from pipeline.manifest.recorded import Contents, scan_sources
from pipeline.store import DigestCache, Journal, open_view
from tests.extraction.test_extract import plain_features
from tests.support.extraction import random_weights, settings_of
from tests.support.media import write_image_folder, write_video

FRAMES = {"a": 5, "b": 7, "c": 3}
CONFIG = {"preprocessing": {"resize": 32, "crop": 32}, "batch_size": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest of three videos and weights."""
    folder = tmp_path_factory.mktemp("corpus")
    for number, (name, num_frames) in enumerate(FRAMES.items()):
        path = folder / f"videos/{name}.mp4"
        write_video(path, num_frames=num_frames, size=(32, 32), first_index=10 * number)
    write_manifest(folder / "mine.csv", FRAMES)
    save_weights(random_weights(), path=folder / "weights")
    return folder


def write_manifest(path: Path, names: Iterable[str]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["clip_id", "source", "split"])
        for name, split in zip(names, ("train", "val", "test"), strict=True):
            writer.writerow([name, f"{name}.mp4", split])


def extract_to(
    folder: Path, corpus: Path, *, manifest: str = "mine.csv", on_progress=None, **changes: object
) -> Extracted:
    config, machine = settings_of({**CONFIG, **changes})
    return extract(
        str(corpus / manifest),
        root=corpus / "videos",
        weights=str(corpus / "weights"),
        config=config,
        machine=machine,
        features=folder / "features",
        journal=str(folder / "journal"),
        on_progress=on_progress,
    )


def job_in(folder: Path, corpus: Path, **changes: object) -> Job:
    config, machine = settings_of({**CONFIG, **changes})
    return make_job(
        read_manifest(corpus / "mine.csv"),
        root=corpus / "videos",
        weights=corpus / "weights",
        config=config,
        machine=machine,
        journal=folder / "journal",
    )


def test_extract_publishes_features_and_returns_the_facts(corpus: Path, tmp_path: Path) -> None:
    heard: list[Progress] = []
    done = extract_to(tmp_path, corpus, on_progress=heard.append)
    assert (done.clips_by_tap, done.left_out, done.failed) == ({"layer4": 3}, {}, {})
    assert (done.num_clips, done.num_computed, done.num_frames) == (3, 3, 15)
    assert done.num_bytes == 15 * 512 * 2
    assert done.seconds > 0
    assert list(done.lanes) == ["decode", "to_device", "compute", "to_host", "write"]
    assert done.limited_by in done.lanes
    json.dumps(done.lanes)
    assert heard[-1] == Progress("extract", 3, 3, num_frames=15, num_bytes=15 * 512 * 2)
    read = [progress for progress in heard if progress.step == "read sources"]
    assert read[-1].num_done == read[-1].num_total == sum(p.stat().st_size for p in corpus.glob("videos/*"))
    weights: Weights = load_weights(corpus / "weights")
    with open_view(tmp_path / "features/layer4") as view:
        for name in FRAMES:
            maps, seconds = plain_features(corpus / f"videos/{name}.mp4", weights)
            np.testing.assert_allclose(view.read(name), maps, rtol=2e-3, atol=1e-3)
            np.testing.assert_array_equal(view.frame_seconds(name), seconds)

    again = extract_to(tmp_path, corpus)
    assert (again.clips_by_tap, again.num_computed, again.frames_per_second) == ({"layer4": 3}, 0, None)


def test_extract_names_the_clips_that_it_leaves_out_and_those_that_failed(
    corpus: Path, tmp_path: Path
) -> None:
    (corpus / "videos/broken.mp4").write_bytes(b"no video")
    write_manifest(corpus / "damaged.csv", ["a", "b", "broken"])
    done = extract_to(tmp_path, corpus, manifest="damaged.csv")
    assert done.clips_by_tap == {"layer4": 2}
    assert list(done.left_out) == ["broken"]
    assert "broken.mp4" in done.left_out["broken"]

    write_manifest(corpus / "gone.csv", ["a", "b", "gone"])
    with pytest.raises(
        PipelineError, match=r"1 clips failed.*run again to retry these:\n  gone: source gone"
    ):
        extract_to(tmp_path, corpus, manifest="gone.csv")


def test_extract_states_facts_and_no_commands(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.csv"):
        extract_to(tmp_path, corpus, manifest="none.csv")
    with pytest.raises(WeightsFileError) as error:
        extract(corpus / "mine.csv", root=corpus / "videos", weights=tmp_path / "none")
    assert str(error.value) == f"No weights file {tmp_path / 'none'}."


def test_a_plan_knows_what_another_process_did_since_the_plan_before(corpus: Path, tmp_path: Path) -> None:
    """Two runs with one new journal: the other one adopts the view while this one is about to do so."""
    extract_to(tmp_path, corpus)
    files = view_files(tmp_path / "features")
    job = job_in(tmp_path / "new", corpus, sampling={"every": 2})

    def another_process_is_faster() -> Mapping[str, Path]:
        assert adopt_files(Journal(job.journal.path), files) == 1
        return files

    todo = prepare(job, features=tmp_path / "none", earlier_files=another_process_is_faster)
    assert [clip.reason for clip in todo.to_extract] == ["sampling changed: all -> {'every': 2}"] * 3


def test_a_plan_knows_what_another_process_computed_while_nothing_was_repacked(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, corpus)

    def another_process_is_faster(*_: object, **__: object) -> int:
        monkeypatch.undo()
        extract_to(tmp_path, corpus)
        return 0

    monkeypatch.setattr("pipeline.extraction.prepare.repack", another_process_is_faster)
    todo = prepare(job, features=tmp_path / "none")
    assert (todo.to_extract, todo.num_unchanged) == ((), 3)


def test_clips_without_features_need_a_journal_that_can_be_written(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, corpus)
    monkeypatch.setattr(Journal, "is_read_only", True)
    with pytest.raises(
        JournalError, match=r"3 clips have no features, and the journal .* can't be written\.$"
    ):
        run_job(job, features=tmp_path / "features")


@pytest.fixture
def mixed(corpus: Path, tmp_path: Path) -> Path:
    """A corpus of its own: a video, a folder of images, and a video that ends too early."""
    root = tmp_path / "mine"
    root.mkdir()
    shutil.copy(corpus / "videos/a.mp4", root)
    write_image_folder(root / "images", num_images=4, size=(32, 32))
    (root / "damaged.mp4").write_bytes(b"no video")
    return root


class Recorded:
    """Runs with the manifest of `mixed` and what an earlier run recorded of its sources."""

    def __init__(self, root: Path, corpus: Path) -> None:
        self.root, self.folder, self.corpus = root, root.parent, corpus
        self.names = {"a": "a.mp4", "images": "images", "damaged": "damaged.mp4"}
        self.contents: Contents = {}

    def job(self, **changes: object) -> Job:
        clips = [Clip(name, (source,), split="train") for name, source in self.names.items()]
        table = pa.Table.from_pylist(list(map(row_of_clip, clips)), schema=SCHEMA)
        config, machine = settings_of({**CONFIG, **changes})
        return make_job(
            Manifest(table, np.arange(len(table))),
            root=self.root,
            weights=self.corpus / "weights",
            config=config,
            machine=machine,
            journal=self.folder / "journal",
            recorded=self.contents,
        )

    def run(self, *, retry: bool = False, **changes: object) -> Extracted:
        return run_job(self.job(**changes), features=self.folder / "features", retry=retry)

    def record_and_move_away(self) -> None:
        """Extract, record the sources, and take the corpus away."""
        self.run()
        digests = DigestCache(self.folder / "digests.arrow")
        self.contents = scan_sources(self.names.values(), root=self.root, digests=digests).contents
        self.root.rename(self.folder / "away")


@pytest.fixture
def recorded(mixed: Path, corpus: Path) -> Recorded:
    runs = Recorded(mixed, corpus)
    runs.record_and_move_away()
    return runs


def read_all(folder: Path) -> dict[str, bytes]:
    with open_view(folder / "features/layer4") as view:
        return {name: view.read(name).tobytes() for name in view.clip_ids()}


def test_features_of_recorded_sources_are_published_without_the_corpus(
    recorded: Recorded, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_all(recorded.folder)
    shutil.rmtree(recorded.folder / "features")
    done = recorded.run()
    assert (done.num_computed, done.clips_by_tap, list(done.left_out)) == (0, {"layer4": 2}, ["damaged"])
    assert read_all(recorded.folder) == before
    assert before.keys() == {"a", "images"}
    assert (
        "3 sources can't be read here; their recorded content stands: a.mp4, images, damaged.mp4"
        in caplog.text
    )


def test_another_layout_is_repacked_and_a_new_journal_adopts_without_the_corpus(recorded: Recorded) -> None:
    before = read_all(recorded.folder)
    recorded.run(store={"format": "hdf5"})
    assert read_all(recorded.folder) == before
    assert (recorded.folder / "features/layer4/features.h5").exists()

    del recorded.names["damaged"]  # a view has no features of it, and the quarantine is the journal's
    shutil.rmtree(recorded.folder / "journal")
    assert recorded.run(store={"format": "hdf5"}).num_computed == 0
    assert read_all(recorded.folder) == before


def test_only_clips_that_must_be_computed_are_named_where_the_corpus_is_not(recorded: Recorded) -> None:
    recorded.names["added"] = "added.mp4"
    done = recorded.run()
    reason = f"there is no folder {recorded.root}. Correct the corpus's root."
    assert done.failed == {"added": f"source added.mp4 can't be read: {reason}"}
    assert (done.clips_by_tap, done.num_computed) == ({}, 0)
    del recorded.names["added"]

    other = recorded.run(sampling={"every": 2})
    assert other.failed.keys() == {"a", "images", "damaged"}
    assert recorded.run().clips_by_tap == {"layer4": 2}


def test_a_clip_with_the_content_of_one_that_is_here_needs_no_source(recorded: Recorded) -> None:
    """The same video under two names, of which one was taken away."""
    recorded.contents = {**recorded.contents, "twin.mp4": recorded.contents["a.mp4"]}
    recorded.names = {"twin": "twin.mp4", "a": "a.mp4"}
    recorded.root.mkdir()
    shutil.copy(recorded.folder / "away/a.mp4", recorded.root)
    done = recorded.run(sampling={"every": 2})
    assert (done.num_computed, done.failed, done.clips_by_tap) == (1, {}, {"layer4": 2})


def test_what_is_here_is_read_and_what_is_not_stays_in_quarantine(recorded: Recorded) -> None:
    recorded.root.mkdir()
    write_video(recorded.root / "a.mp4", num_frames=2, size=(32, 32), first_index=99)
    done = recorded.run(retry=True)
    assert (done.num_computed, done.num_frames, list(done.left_out)) == (1, 2, ["damaged"])


def test_without_a_record_a_corpus_that_is_not_there_is_an_error(recorded: Recorded) -> None:
    recorded.contents = {}
    with pytest.raises(ManifestError, match=r"source a\.mp4 does not exist"):
        recorded.job()
