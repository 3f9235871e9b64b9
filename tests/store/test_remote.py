"""Views in an object store: read from a real S3 server with faults, through a bounded cache."""

import multiprocessing
import os
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("moto", reason="moto is the S3 server of these tests")
pytest.importorskip("obstore", reason="obstore reads from object stores")

import pipeline
from pipeline.errors import DamagedError, MissingFeaturesError, RemoteError, StoreError
from pipeline.learn.open_features import OpenFeatures
from pipeline.store import open_view
from pipeline.store.cache import FileCache
from tests.support.features import (
    CODECS,
    FORMATS,
    clip_maps,
    fill,
    frame_times,
    make_journal,
    make_view,
    publish_clips,
    shard_files,
)
from tests.support.s3 import S3, Fault, cut_off, flipped, forbidden, serving, short, stalled, unavailable

pytestmark = pytest.mark.slow

CLIPS = {"walk": 5, "blink": 1, "long": 70, "run": 12}


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with serving() as s3:
        yield s3


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """The server, whose address the environment has; small blocks, so that clips straddle them."""
    server.clear()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setattr("pipeline.store.remote._BLOCK_BYTES", 700)
    monkeypatch.setattr("pipeline.store.remote._STALL_TIMEOUT", "0.2s")
    monkeypatch.setattr("pipeline.store.remote._MAX_RETRIES", 2)
    return server


def open_here(url: str, tmp_path: Path, *, cache_mb: int = 64) -> OpenFeatures:
    return pipeline.open_features(url, cache=tmp_path / "cache", cache_mb=cache_mb)


def assert_equals_local(features: OpenFeatures, path: Path) -> None:
    """Every clip is that of the view in the folder `path`, bit for bit."""
    with open_view(path) as local:
        assert features.clip_ids() == local.clip_ids()
        for clip_id in local.clip_ids():
            assert features.read(clip_id).tobytes() == local.read(clip_id).tobytes()
            np.testing.assert_array_equal(features.frame_seconds(clip_id), local.frame_seconds(clip_id))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("container", FORMATS)
def test_a_remote_view_equals_the_local_one_bit_for_bit(
    s3: S3, tmp_path: Path, container: str, codec: str
) -> None:
    path = make_view(tmp_path, CLIPS, format=container, codec=codec)
    url = s3.upload(path, "bucket", f"{container}-{codec}/layer4@flip")
    with open_here(url, tmp_path) as features, open_view(path) as local:
        assert_equals_local(features, path)
        assert features.table().equals(local.table())
        assert features.digest == local.digest
        for first, count in ((0, 1), (3, 5), (31, 2), (40, 30)):
            part = features.read("long", first_frame=first, num_frames=count)
            np.testing.assert_array_equal(part, clip_maps("long", 70)[first : first + count])


def test_a_clip_is_read_by_ranges_and_kept_for_the_next_reader(s3: S3, tmp_path: Path) -> None:
    url = s3.upload(make_view(tmp_path, CLIPS), "bucket", "kept")
    with open_here(url, tmp_path) as features:
        features.read("blink")
        index, record, shard = s3.requests
        assert (index, Path(record).suffix) == ("/bucket/kept/index.arrow", ".record")
        assert shard.startswith("/bucket/kept/c/")
        features.read("blink")
        assert len(s3.requests) == 3
    assert sum(file.stat().st_size for file in (tmp_path / "cache").glob("*-*.cached")) <= 700
    with open_here(f"{url}/", tmp_path) as features:
        np.testing.assert_array_equal(features.read("blink"), clip_maps("blink", 1))
    assert s3.requests[3:] == ["/bucket/kept/index.arrow"]


def test_threads_fetch_a_block_once(s3: S3, tmp_path: Path) -> None:
    url = s3.upload(make_view(tmp_path, CLIPS), "bucket", "threads")
    with open_here(url, tmp_path) as features, ThreadPoolExecutor(8) as pool:
        for maps in pool.map(features.read, ["blink"] * 16):
            np.testing.assert_array_equal(maps, clip_maps("blink", 1))
    assert len(s3.requests) == 3


def test_an_empty_view_has_no_clips(s3: S3, tmp_path: Path) -> None:
    with open_here(s3.upload(make_view(tmp_path, {}), "bucket", "empty"), tmp_path) as features:
        assert (len(features), features.table().num_rows) == (0, 0)


@pytest.mark.parametrize("fault", [unavailable, stalled, cut_off, short, flipped])
def test_a_passing_fault_changes_no_number(s3: S3, tmp_path: Path, fault: Fault) -> None:
    path = make_view(tmp_path, {"walk": 5, "run": 12})
    url = s3.upload(path, "bucket", f"passing-{fault.__name__}")
    s3.misbehave(fault, num_times=1)  # of the index
    with open_here(url, tmp_path) as features:
        s3.misbehave(fault, num_times=1)  # of the record
        features.frame_seconds("walk")
        s3.misbehave(fault, num_times=1)  # of the shard
        assert_equals_local(features, path)
        assert s3.num_faults == 0


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (unavailable, RemoteError, r"c/0/0/0/0 can't be read: .*after 2 retries.*503 Service Unavailable"),
        (stalled, RemoteError, r"c/0/0/0/0 can't be read: .*after 2 retries"),
        (forbidden, RemoteError, r"c/0/0/0/0 can't be read: The operation lacked the necessary privileges"),
        (cut_off, RemoteError, r"c/0/0/0/0 can't be read: .*body"),
        (short, DamagedError, r"c/0/0/0/0\) is damaged: it ends early"),
        (flipped, DamagedError, r"c/0/0/0/0\) is damaged: chunk 0 does not match its checksum"),
    ],
    ids=["unavailable", "stalled", "forbidden", "cut_off", "short", "flipped"],
)
def test_a_lasting_fault_is_an_error_with_the_file_and_the_cache_stays_right(
    s3: S3, tmp_path: Path, fault: Fault, error: type[Exception], message: str
) -> None:
    path = make_view(tmp_path, {"walk": 5})
    url = s3.upload(path, "bucket", f"lasting-{fault.__name__}")
    with open_here(url, tmp_path) as features:
        features.frame_seconds("walk")
        s3.misbehave(fault)
        with pytest.raises(error, match=rf"{url}/{message}"):
            features.read("walk")
        s3.clear()
        assert_equals_local(features, path)


def test_damage_in_the_cache_is_fetched_again(s3: S3, tmp_path: Path) -> None:
    path = make_view(tmp_path, CLIPS, codec="lz4")
    with open_here(s3.upload(path, "bucket", "damaged-cache"), tmp_path) as features:
        assert_equals_local(features, path)
        for file in (tmp_path / "cache").glob("*.cached"):
            data = bytearray(file.read_bytes())
            data[len(data) // 2] ^= 16
            file.write_bytes(data[: len(data) - len(data) % 2])
        assert_equals_local(features, path)


def test_a_view_that_is_replaced_keeps_the_old_numbers_or_says_so(s3: S3, tmp_path: Path) -> None:
    journal, contract, layout = make_journal(tmp_path / "journal", {"walk": 5, "run": 60})
    old = publish_clips(journal, contract, layout, ["walk", "run"], tmp_path / "old")
    fill(journal, contract, layout, {"new": 60})
    new = publish_clips(journal, contract, layout, ["new"], tmp_path / "new")
    url = s3.upload(old, "bucket", "replaced")
    with open_here(url, tmp_path) as features:
        walk = features.read("walk")
        for source, target in zip(shard_files(new), shard_files(old), strict=False):
            s3.put("bucket", f"replaced/{target.relative_to(old)}", source.read_bytes())
        with pytest.raises(DamagedError, match="does not match its checksum"):
            features.read("run")  # half of the other view is there
        s3.upload(new, "bucket", "replaced")
        with pytest.raises(StoreError, match=f"{url} was replaced by another view since it was opened"):
            features.read("run")
        np.testing.assert_array_equal(features.read("walk"), walk)
        np.testing.assert_array_equal(features.frame_seconds("walk"), frame_times(5))


def test_a_small_cache_holds_its_bound_and_other_files_stay(s3: S3, tmp_path: Path) -> None:
    path = make_view(tmp_path, {"long": 30_000}, rows_per_shard=3000)
    url = s3.upload(path, "bucket", "bounded")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "thesis.txt").write_text("mine")
    (cache / ".left.cached.partial-0123").write_bytes(b"of a process that was killed")
    for cache_mb in (0, 1):
        with pytest.MonkeyPatch.context() as patch, open_here(url, tmp_path, cache_mb=cache_mb) as features:
            patch.setattr("pipeline.store.remote._BLOCK_BYTES", 100_000)
            assert features.read("long").tobytes() == clip_maps("long", 30_000).tobytes()
        sizes = [file.stat().st_size for file in cache.glob("*.cached")]
        assert cache_mb * 900_000 <= sum(sizes) <= cache_mb << 20
    assert (cache / "thesis.txt").read_text() == "mine"
    assert not list(cache.glob(".*"))


def _use_cache(folder: Path, seed: int) -> int:
    """Read 300 times from a cache of ten files; the largest size that its folder had."""
    cache = FileCache(folder, max_bytes=10_000)
    largest = 0
    for number in np.random.default_rng(seed).integers(0, 30, 300).tolist():
        content = number.to_bytes(4, "little") * 250
        descriptor = cache.open(f"file{number}", lambda content=content: content)
        assert os.pread(descriptor, 2000, 0) == content
        os.close(descriptor)
        if number == 0:
            cache.remove("file0")
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".cached")]
        largest = max(largest, 1000 * len(names))
    return largest


def test_processes_share_a_cache_and_its_bound(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        largest = list(pool.map(_use_cache, [tmp_path] * 2, range(2)))
    assert max(largest) <= 10_000


def test_what_is_not_there_and_what_needs_a_folder_is_said_in_one_sentence(s3: S3, tmp_path: Path) -> None:
    url = s3.upload(make_view(tmp_path, CLIPS), "bucket", "words")
    with pytest.raises(MissingFeaturesError, match=r"^No features at s3://bucket/nothing: it has no index"):
        open_here("s3://bucket/nothing", tmp_path)
    with pytest.raises(
        RemoteError, match=r'^ftp://host/x can\'t be read: .*"ftp://host/x"\. Check the address'
    ):
        open_here("ftp://host/x", tmp_path)
    with open_here(url, tmp_path) as features:
        with pytest.raises(TypeError, match=f"^{url} is in no folder here: read its clips, or copy it"):
            features.zarr()
        with pytest.raises(TypeError, match="in no folder here"):
            features.dask()
        with pytest.raises(TypeError, match=f"{url} is stored as Zarr"):
            features.h5py()


def test_a_copy_of_the_view_opens_it_again_and_a_forked_process_is_refused(s3: S3, tmp_path: Path) -> None:
    url = s3.upload(make_view(tmp_path, CLIPS), "bucket", "processes")
    with open_here(url, tmp_path) as features:
        with pickle.loads(pickle.dumps(features)) as again:
            np.testing.assert_array_equal(again.read("walk"), clip_maps("walk", 5))
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                features.read("walk")
            except RemoteError as error:
                os.write(writing, str(error).encode())
            finally:
                os._exit(0)
        os.wait()
        message = os.read(reading, 1000).decode()
    os.close(reading)
    os.close(writing)
    assert message.startswith(f"{url} was opened before this process was forked")
