"""RemoteFolder: the files of a view in an object store (S3 and others), read by ranges through a cache.

Only the index is found by a name that another view's may have too. All else follows from its content: a
shard's id is the digest of its record, and the record has a checksum of each chunk. So of a view that is
replaced while it is read, the old numbers are read or an error is raised.
"""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.errors import DamagedError, MissingFeaturesError, RemoteError, StoreError, extra
from pipeline.store.cache import Fetch, FileCache
from pipeline.store.format.containers import CONTAINERS
from pipeline.store.format.records import RECORD_SUFFIX, Record, parse_record
from pipeline.store.format.rows import ShardRows
from pipeline.store.view import INDEX_NAME, RECORDS_NAME, ViewIndex, parse_index
from pipeline.system.parallel import in_threads

log = logging.getLogger(__name__)

Value = TypeVar("Value")

_BLOCK_BYTES = 4 << 20  # takes about as long to transfer as S3 takes to begin
_NUM_THREADS = 8  # requests at once
_NUM_TRIES = 3  # to get the right bytes; what fails in other ways is tried again by obstore
_STALL_TIMEOUT = "30s"  # without a byte
_REQUEST_TIMEOUT = "1h"  # an index of millions of clips, over a slow connection
_MAX_RETRIES = 10  # each after a longer pause, for at most three minutes


def default_cache() -> Path:
    """The folder for cached files in the user's cache folder."""
    with extra("remote", use="The default of `cache`"):
        from platformdirs import user_cache_path
    return user_cache_path("framecache")


class RemoteFolder:
    """The files of a view at a URL: see `ViewFiles`. A forked process can't use its parent's."""

    def __init__(self, url: str, *, cache: Path, cache_bytes: int) -> None:
        """`cache` is a folder for what is read. Processes and views may share it.

        Raises MissingPackageError, MissingFeaturesError, RemoteError, DamagedError and StoreError.
        """
        with extra("remote", use=f"Reading {url}"):
            from obstore.exceptions import BaseError
            from obstore.store import from_url
        self.name = url.rstrip("/")
        self._errors = (BaseError, ValueError)
        self._cache = FileCache(cache, max_bytes=cache_bytes)
        self._process = os.getpid()
        with self._naming(self.name):
            self._store = from_url(
                self.name,
                # A service at an http:// address is the user's choice.
                client_options={
                    "allow_http": True,
                    "read_timeout": _STALL_TIMEOUT,
                    "timeout": _REQUEST_TIMEOUT,
                },
                retry_config={"max_retries": _MAX_RETRIES},
            )
        try:
            self.index = self._read_index()
        except MissingFeaturesError:
            raise MissingFeaturesError(f"No features at {self.name}: it has no {INDEX_NAME}.") from None

    @property
    def path(self) -> Path:
        """Raises TypeError."""
        raise TypeError(f"{self.name} is in no folder here: read its clips, or copy it and open the copy.")

    def _read_index(self) -> ViewIndex:
        return _retry(lambda: parse_index(self._get(INDEX_NAME), path=f"{self.name}/{INDEX_NAME}"))

    def _is_replaced(self) -> bool:
        """Whether another view is here now."""
        try:
            return self._read_index().digest != self.index.digest
        except (StoreError, RemoteError):
            return False

    def open_shard(self, number: int) -> "_RemoteShard":
        """See `ViewFiles`."""
        return _RemoteShard(self, number, self._record(number).chunks)

    def times(self) -> np.ndarray:
        """See `ViewFiles`. Reads all records."""
        numbers = range(len(self.index.shard_ids))
        records = in_threads(self._record, numbers, num_threads=_NUM_THREADS)
        by_row = np.concatenate([np.empty(0), *(record.frame_seconds() for record in records)])
        _, (shards, first_rows, counts) = self.index.spans()
        first = shards.astype(np.int64) * self.index.layout.rows_per_shard + first_rows
        times: np.ndarray = by_row[
            np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        ]
        return times

    def _record(self, number: int) -> Record:
        shard_id = self.index.shard_ids[number]
        file = f"{RECORDS_NAME}/{shard_id}{RECORD_SUFFIX}"

        def parse(descriptor: int) -> Record:
            with open(descriptor, "rb", closefd=False) as data:
                record = parse_record(data.read(), path=f"{self.name}/{file}")
            if record.shard_id != shard_id:
                raise DamagedError(f"{self.name}/{file} is damaged: it is the record of {record.shard_id}.")
            return record

        return self.use(f"{shard_id}{RECORD_SUFFIX}", parse, fetch=partial(self._get, file))

    def use(self, name: str, function: Callable[[int], Value], *, fetch: Fetch) -> Value:
        """function(descriptor of the cached file `name`); it is fetched again if it proves damaged.

        Raises StoreError when the view was replaced since it was opened, and what `function` and `fetch`
        raise.
        """
        if os.getpid() != self._process:
            raise RemoteError(  # obstore would wait for threads that a forked process does not have
                f"{self.name} was opened before this process was forked, and can't be read in it. Start"
                ' processes by "spawn" (for a DataLoader: multiprocessing_context="spawn").'
            )

        def call() -> Value:
            descriptor = self._cache.open(name, fetch)
            try:
                return function(descriptor)
            except DamagedError:
                self._cache.remove(name)
                raise
            finally:
                os.close(descriptor)

        try:
            return _retry(call)
        except StoreError as error:
            if self._is_replaced():
                raise StoreError(
                    f"{self.name} was replaced by another view since it was opened. Open it again."
                ) from error
            raise

    def get_range(self, file: str, start: int, end: int) -> memoryview:
        """Bytes of a file of the view. Raises MissingFeaturesError and RemoteError."""
        with self._naming(f"{self.name}/{file}"):
            return memoryview(self._store.get_range(file, start=start, end=end))

    def _get(self, file: str) -> bytes:
        with self._naming(f"{self.name}/{file}"):
            return bytes(self._store.get(file).bytes())

    @contextlib.contextmanager
    def _naming(self, url: str) -> Iterator[None]:
        """In the block, the object store is used for `url`, which its errors then name."""
        try:
            yield
        except FileNotFoundError:
            raise MissingFeaturesError(f"{url} is missing.") from None
        except self._errors as error:
            reason, *_ = re.split(r"\n|: ?<|: ?$", str(error), maxsplit=1)  # without the server's page
            raise RemoteError(
                f"{url} can't be read: {reason}. Check the address, the connection and the credentials."
            ) from None

    def close(self) -> None:
        """See `ViewFiles`. Nothing is open between reads."""


class _RemoteShard:
    """A shard, read in blocks of whole chunks. In the cache, a block is a shard file of its own."""

    def __init__(self, folder: RemoteFolder, number: int, chunks: np.ndarray) -> None:
        self._folder = folder
        self._layout = folder.index.layout
        self._file = str(CONTAINERS[self._layout.format].shard_path(number))
        self._shard_id = folder.index.shard_ids[number]
        self._chunks = chunks
        self._chunks_per_block = max(1, _BLOCK_BYTES // self._layout.chunk_bytes)

    def read_into(self, buffer: memoryview, *, row: int, clip_id: str) -> None:
        """See `Rows`."""
        rows_per_block = self._chunks_per_block * self._layout.rows_per_chunk
        pieces = []  # of the buffer, one a block
        while buffer:
            block, skip = divmod(row, rows_per_block)
            size = min(len(buffer), (rows_per_block - skip) * self._layout.row_bytes)
            pieces.append((block, skip, buffer[:size]))
            buffer, row = buffer[size:], row + rows_per_block - skip
        read = partial(self._read_block, clip_id)
        for _ in in_threads(read, pieces, num_threads=_NUM_THREADS):
            pass

    def _read_block(self, clip_id: str, piece: tuple[int, int, memoryview]) -> None:
        block, row, buffer = piece
        chunks = self._chunks[block * self._chunks_per_block :][: self._chunks_per_block]
        start, end = int(chunks["offset"][0]), int(chunks["offset"][-1] + chunks["size_bytes"][-1])
        columns = {name: chunks[name] for name in ("offset", "size_bytes", "checksum")}
        columns["offset"] = columns["offset"] - np.uint64(start)

        def read(descriptor: int) -> None:
            name = f"Shard {self._shard_id} ({self._folder.name}/{self._file})"
            # A new one verifies each chunk that it reads.
            rows = ShardRows(descriptor, layout=self._layout, chunks=columns, name=name)
            rows.read_into(buffer, row=row, clip_id=clip_id)

        fetch = partial(self._folder.get_range, self._file, start, end)
        self._folder.use(f"{self._shard_id}-{start}-{end}", read, fetch=fetch)


def _retry(function: Callable[[], Value]) -> Value:
    """function(), which is called again when it finds damage: that may have happened on the way."""
    for _ in range(_NUM_TRIES - 1):
        try:
            return function()
        except DamagedError as error:
            log.warning("%s It is read again.", error)
    return function()
