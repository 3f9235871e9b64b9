"""What the store leaves alone in the process that uses it, and what it says where that is not enough."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numcodecs import blosc

from pipeline.errors import StoreError
from pipeline.store import open_view
from pipeline.store.format.codecs import decode_into, encode, on_one_thread
from stages import console
from tests.support.features import make_view

LOOK = """
import resource
from numcodecs import blosc
state = lambda: (blosc.use_threads, blosc.get_nthreads(), resource.getrlimit(resource.RLIMIT_NOFILE))
before = state()
import pipeline.backbone.weights, pipeline.extraction, pipeline.store
assert state() == before, (before, state())
"""


@contextmanager
def open_files_limited(num_more: int) -> Iterator[None]:
    """In the block, so many more files may be open than now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + num_more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_importing_the_library_changes_neither_blosc_nor_the_limit_of_open_files() -> None:
    subprocess.run([sys.executable, "-c", LOOK], check=True)


@pytest.mark.parametrize("setting", [None, False, True])
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_chunk_of_many_blocks_is_always_the_same_bytes_and_blosc_keeps_its_setting(
    codec: str, setting: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blosc, "use_threads", setting)
    values = np.random.default_rng(0).normal(size=400_000).astype(np.float16)
    chunk = values.view(np.uint8).data
    stored = {bytes(encode(chunk, codec=codec, itemsize=2)) for _ in range(20)}
    assert len(stored) == 1
    out = np.empty_like(values)
    with on_one_thread():
        decode_into(stored.pop(), out.view(np.uint8).data)
    assert out.tobytes() == values.tobytes()
    assert blosc.use_threads is setting


@pytest.mark.slow
def test_a_view_of_more_shards_than_open_files_are_allowed_says_how_many_it_needs(tmp_path: Path) -> None:
    path = make_view(tmp_path, {"long": 5000}, rows_per_chunk=2, rows_per_shard=10)
    with open_files_limited(20), pytest.raises(StoreError, match=r"has 500 shards.* may open only \d+ files"):
        open_view(path)
    with open_view(path) as view:
        assert view.num_frames("long") == 5000


def test_a_stage_may_open_as_many_files_as_the_system_allows() -> None:
    with open_files_limited(20):
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        console.run(lambda: None)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most)
