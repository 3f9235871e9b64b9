"""ShardWriter: appends clips' rows to immutable shards.

A shard is written under a temporary name, flushed and renamed; then its record is, in the same way.
A shard without a record does not exist. A full shard is flushed on a thread beside the writing of the next.
"""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.contract import FeatureContract
from pipeline.store.format.codecs import encode
from pipeline.store.format.containers import CONTAINERS, ShardFile, rest_checksum
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import CHUNK_DTYPE, ClipSource, Record
from pipeline.store.format.tables import SPAN_SCHEMA, seal
from pipeline.system.files import (
    make_folder,
    naming_full_disk,
    partial_path,
    protect,
    share,
    sync_directory,
    write_atomically,
)


@dataclass
class _OpenSpan:
    clip: ClipSource
    first_frame: int
    row: int
    num_rows: int
    frame_seconds: list[np.ndarray]
    previous_shard: str | None
    final: bool = False


@dataclass
class _OpenShard:
    path: Path
    file: ShardFile
    opened_at: float
    num_rows: int = 0
    pending: np.ndarray | None = None  # the last chunk, while it is not full
    spans: list[_OpenSpan] = field(default_factory=list)
    last_span: dict[bytes, _OpenSpan] = field(default_factory=dict)
    checksums: list[int] = field(default_factory=list)  # of the chunks, as stored


class ShardWriter:
    """Appends clips' rows to shards in `directory` and commits each shard when it is full or old.

    Clips may be interleaved: each `append` continues its clip. A clip exists once the shard with its
    final span is committed. Shards are committed in the order of their writing: at most one is being flushed,
    and if that fails, so does every later call but `drop` and `abandon`. A writer is used by one thread only.
    """

    def __init__(
        self,
        directory: Path,
        *,
        contract: FeatureContract,
        layout: Layout,
        commit_seconds: float,
        generation: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        make_folder(directory)
        self.directory = directory
        self.contract = contract
        self._layout = layout
        self._commit_seconds = commit_seconds
        self._generation = generation
        self._clock = clock
        self.dtype = np.dtype(layout.dtype)
        self._shard: _OpenShard | None = None
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._flushing: Future[None] | None = None  # of the latest full shard
        # Clips that started in a committed shard and go on: frames so far, and that shard.
        self._continued: dict[bytes, tuple[int, str]] = {}

    def append(
        self,
        clip: ClipSource,
        rows: np.ndarray,
        frame_seconds: np.ndarray,
        *,
        final: bool,
    ) -> None:
        """Add rows (T, C, H, W) of the layout's dtype and their times (T,); `final` ends the clip.

        Raises ValueError for rows that are not the layout's. If writing fails, the open shard is discarded:
        its state is unknown.
        """
        if rows.shape[1:] != self._layout.row_shape or rows.dtype != self._layout.dtype:
            raise ValueError(f"{rows.dtype} rows of shape {rows.shape[1:]} do not fit {self._layout}.")
        try:
            self._append(clip, np.ascontiguousarray(rows), frame_seconds, final=final)
        except BaseException:
            self.abandon()
            raise

    def _append(
        self,
        clip: ClipSource,
        rows: np.ndarray,
        frame_seconds: np.ndarray,
        *,
        final: bool,
    ) -> None:
        while len(rows):
            shard = self._shard or self._open()
            count = min(len(rows), self._layout.rows_per_shard - shard.num_rows)
            span = self._extend_span(shard, clip, frame_seconds[:count])
            self._write_rows(shard, rows[:count])
            rows, frame_seconds = rows[count:], frame_seconds[count:]
            span.final = final and not len(rows)
            if shard.num_rows == self._layout.rows_per_shard:
                self._start_commit()
        if final:
            self._continued.pop(clip.key, None)
        if self._shard and self._clock() - self._shard.opened_at > self._commit_seconds:
            self._start_commit()

    def drop(self, clip: ClipSource) -> None:
        """Forget a clip that failed. Its rows in the open shard stay there, unused."""
        self._continued.pop(clip.key, None)
        if self._shard:
            self._shard.last_span.pop(clip.key, None)
            self._shard.spans = [span for span in self._shard.spans if span.clip.key != clip.key]

    def commit(self) -> None:
        """Make everything that was appended so far durable and visible."""
        self._start_commit()
        self._wait()

    def _start_commit(self) -> None:
        """Close the open shard; the flusher makes it durable and visible."""
        shard = self._shard
        if shard is None or not shard.spans:
            self._discard()
            return
        try:
            self._wait()
            record = self._seal(shard)
        except BaseException:
            self._discard()
            raise
        for span in shard.spans:
            if span.final:
                self._continued.pop(span.clip.key, None)
            else:
                self._continued[span.clip.key] = (span.first_frame + span.num_rows, record.shard_id)
        self._shard = None
        self._flushing = self._flusher.submit(_publish, shard.path, record, self.directory)

    def _wait(self) -> None:
        """Wait until the shard that is being flushed is visible. Raises what flushing it raised."""
        if self._flushing:
            self._flushing.result()

    def _seal(self, shard: _OpenShard) -> Record:
        """Finish the file. Returns its record."""
        if shard.pending is not None:
            used = shard.num_rows % self._layout.rows_per_chunk
            shard.pending[used:] = np.nan
            self._write_chunks(shard, shard.pending)
        places = shard.file.finish()
        chunks = np.empty(len(places), CHUNK_DTYPE)
        chunks["offset"], chunks["size_bytes"] = places["offset"], places["size_bytes"]
        chunks["checksum"] = shard.checksums
        spans = _spans_table(shard.spans)
        return Record(
            shard_id=_shard_id(self.contract, self._layout, self._generation, chunks, spans),
            contract=self.contract,
            layout=self._layout,
            spans=spans,
            chunks=chunks,
            rest_checksum=rest_checksum(shard.path, places),
            generation=self._generation,
        )

    def commit_complete(self) -> None:
        """Commit the clips that are complete and forget the others, when nothing more will be appended."""
        if self._shard:
            complete = {span.clip.key for span in self._shard.spans if span.final}
            self._shard.spans = [span for span in self._shard.spans if span.clip.key in complete]
        self.commit()

    def abandon(self) -> None:
        """Drop what is not committed; a shard that is being flushed still is."""
        if self._flushing:
            self._flushing.exception()  # waits
        self._discard()

    def _discard(self) -> None:
        if self._shard:
            self._shard.file.abandon()
            self._shard.path.unlink(missing_ok=True)
            self._shard = None

    def _open(self) -> _OpenShard:
        path = partial_path(self.directory / "shard")
        file = CONTAINERS[self._layout.format].open_shard(path, self._layout)
        self._shard = _OpenShard(path, file, self._clock())
        return self._shard

    def _extend_span(self, shard: _OpenShard, clip: ClipSource, times: np.ndarray) -> _OpenSpan:
        last = shard.last_span.get(clip.key)
        if last and last.row + last.num_rows == shard.num_rows:
            last.num_rows += len(times)
            last.frame_seconds.append(times)
            return last
        first_frame, previous = self._continued.get(clip.key, (0, None))
        if last:
            first_frame, previous = last.first_frame + last.num_rows, last.previous_shard
        span = _OpenSpan(clip, first_frame, shard.num_rows, len(times), [times], previous)
        shard.spans.append(span)
        shard.last_span[clip.key] = span
        return span

    def _write_rows(self, shard: _OpenShard, rows: np.ndarray) -> None:
        size = self._layout.rows_per_chunk
        while len(rows):
            used = shard.num_rows % size
            if used or len(rows) < size:
                count = min(len(rows), size - used)
                if shard.pending is None:
                    shard.pending = np.empty((size, *self._layout.row_shape), self._layout.dtype)
                shard.pending[used : used + count] = rows[:count]
                if used + count == size:
                    self._write_chunks(shard, shard.pending)
                    shard.pending = None
            else:  # whole chunks: no copy
                count = len(rows) // size * size
                self._write_chunks(shard, rows[:count])
            shard.num_rows += count
            rows = rows[count:]

    def _write_chunks(self, shard: _OpenShard, rows: np.ndarray) -> None:
        """Write the rows of whole chunks at once: a thread waits for Python's lock after each write."""
        data, size = rows.reshape(-1).view(np.uint8).data, self._layout.chunk_bytes
        chunks = [
            encode(data[start : start + size], codec=self._layout.codec, itemsize=rows.itemsize)
            for start in range(0, len(data), size)
        ]
        shard.checksums += [xxhash.xxh3_64_intdigest(chunk) for chunk in chunks]
        shard.file.append(chunks)


@contextmanager
def committing(*writers: ShardWriter) -> Iterator[None]:
    """Commit the complete clips of these writers when the block ends, by an error or an interrupt, too.

    A shard whose writing failed is discarded. Raises DiskFullError when there is no space to write.
    """
    with naming_full_disk(writers[0].directory), ExitStack() as stack:
        for writer in writers:
            stack.callback(writer.abandon)
            stack.callback(writer.commit_complete)
        yield


def _publish(partial: Path, record: Record, directory: Path) -> None:
    """Flush a finished shard file, give it its name, and write its record."""
    try:
        share(partial)
        protect(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(directory / record.shard_name)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(directory)
    write_atomically(directory / record.record_name, record.to_bytes(), read_only=True)


def _spans_table(spans: list[_OpenSpan]) -> pa.Table:
    return pa.Table.from_pydict(
        {
            "clip_key": [span.clip.key for span in spans],
            "clip_id": [span.clip.clip_id for span in spans],
            "source": [span.clip.source for span in spans],
            "first_frame": [span.first_frame for span in spans],
            "row": [span.row for span in spans],
            "num_rows": [span.num_rows for span in spans],
            "final": [span.final for span in spans],
            "previous_shard": [span.previous_shard for span in spans],
            "frame_seconds": [np.concatenate(span.frame_seconds) for span in spans],
        },
        schema=SPAN_SCHEMA,
    )


def _shard_id(
    contract: FeatureContract, layout: Layout, generation: int, chunks: np.ndarray, spans: pa.Table
) -> str:
    hasher = xxhash.xxh3_128(contract.digest().encode() + layout.name.encode())
    if generation:
        hasher.update(str(generation).encode())
    hasher.update(chunks.tobytes())
    hasher.update(seal(spans, {}))
    return hasher.hexdigest()
