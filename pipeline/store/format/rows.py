"""Reads rows of one shard file, of either container: by offset, straight into the caller's buffer."""

import os
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xxhash

from pipeline.errors import DamagedError
from pipeline.store.format.codecs import decode_into, on_one_thread
from pipeline.store.format.containers import rest_checksum
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import Record

# Decoded from one read. Bounds the memory needed beside the caller's buffer.
_PIECE_BYTES = 8 << 20


class ShardRows:
    """An open shard file. A chunk's checksum is verified when this object first needs it.

    Threads may share one. The caller closes the descriptor.
    """

    def __init__(
        self, descriptor: int, *, layout: Layout, chunks: Mapping[str, np.ndarray], name: str
    ) -> None:
        """`chunks` has the columns of CHUNK_DTYPE; `name` is used in messages."""
        self._descriptor = descriptor
        self._layout = layout
        # As memory views and bytes: reading one element is several times faster than numpy's.
        self._offset, self._size_bytes = chunks["offset"].data, chunks["size_bytes"].data
        self._checksum = chunks["checksum"].data
        self._unverified = bytearray(b"\1" * len(self._offset))
        self._name = name

    def read_into(self, buffer: memoryview, *, row: int, clip_id: str) -> None:
        """Fill `buffer`, a whole number of rows in bytes, with the shard's rows from `row` on.

        `clip_id` is used in messages. Raises DamagedError.
        """
        if self._layout.codec == "none":
            self._read_plain(buffer, row, clip_id)
            return
        size = max(1, _PIECE_BYTES // self._layout.row_bytes) * self._layout.row_bytes
        with on_one_thread():
            for start in range(0, len(buffer), size):
                skip = start // self._layout.row_bytes
                self._read_encoded(buffer[start : start + size], row + skip, clip_id)

    def _read_plain(self, buffer: memoryview, row: int, clip_id: str) -> None:
        layout = self._layout
        num_rows = len(buffer) // layout.row_bytes
        first, last = row // layout.rows_per_chunk, (row + num_rows - 1) // layout.rows_per_chunk
        # HDF5 may put something of its own between chunks.
        is_one_piece = self._offset[last] - self._offset[first] == (last - first) * layout.chunk_bytes
        if is_one_piece and self._unverified.find(1, first, last + 1) < 0:
            skip = row % layout.rows_per_chunk * layout.row_bytes
            self._pread(buffer, self._offset[first] + skip, clip_id)
        else:
            self._read_chunkwise(buffer, row, clip_id)

    def _read_chunkwise(self, buffer: memoryview, row: int, clip_id: str) -> None:
        """Read chunk after chunk, and verify each at once, while it is in the processor's cache."""
        layout = self._layout
        while buffer:
            number, skip = divmod(row, layout.rows_per_chunk)
            count = min(layout.rows_per_chunk - skip, len(buffer) // layout.row_bytes)
            part = buffer[: count * layout.row_bytes]
            start = skip * layout.row_bytes
            if count < layout.rows_per_chunk and self._unverified[number]:
                chunk = _scratch(layout.chunk_bytes)
                self._pread(chunk, self._offset[number], clip_id)
                self._check(chunk, number, clip_id)
                part[:] = chunk[start : start + len(part)]
            else:
                self._pread(part, self._offset[number] + start, clip_id)
                if self._unverified[number]:
                    self._check(part, number, clip_id)
            buffer, row = buffer[len(part) :], row + count

    def _read_encoded(self, buffer: memoryview, row: int, clip_id: str) -> None:
        """Read all chunks at once, which both containers keep in row order, then decode each."""
        layout = self._layout
        first = row // layout.rows_per_chunk
        last = (row + len(buffer) // layout.row_bytes - 1) // layout.rows_per_chunk
        start = self._offset[first]
        stored = _scratch(self._offset[last] + self._size_bytes[last] - start)
        self._pread(stored, start, clip_id)
        skip = row % layout.rows_per_chunk * layout.row_bytes  # bytes of the first chunk, before `row`
        for number in range(first, last + 1):
            chunk = stored[self._offset[number] - start :][: self._size_bytes[number]]
            if self._unverified[number]:
                self._check(chunk, number, clip_id)
            size = min(layout.chunk_bytes - skip, len(buffer))
            if size == layout.chunk_bytes:
                self._decode(chunk, buffer[:size], number, clip_id)
            else:
                whole = memoryview(bytearray(layout.chunk_bytes))
                self._decode(chunk, whole, number, clip_id)
                buffer[:size] = whole[skip : skip + size]
            buffer, skip = buffer[size:], 0

    def _decode(self, stored: memoryview, out: memoryview, number: int, clip_id: str) -> None:
        try:
            decode_into(stored, out)
        except (RuntimeError, ValueError) as error:
            raise DamagedError(
                f"{self._name} is damaged: chunk {number} does not decompress ({error};"
                f" reading clip {clip_id!r})."
            ) from None

    def _check(self, stored: memoryview, number: int, clip_id: str) -> None:
        if xxhash.xxh3_64_intdigest(stored) != self._checksum[number]:
            raise DamagedError(
                f"{self._name} is damaged: chunk {number} does not match its checksum"
                f" (reading clip {clip_id!r})."
            )
        self._unverified[number] = 0

    def _pread(self, buffer: memoryview, offset: int, clip_id: str) -> None:
        while buffer:
            count = os.preadv(self._descriptor, [buffer], offset)
            if count == 0:
                raise self._ends_early(clip_id)
            buffer, offset = buffer[count:], offset + count

    def _ends_early(self, clip_id: str) -> DamagedError:
        return DamagedError(f"{self._name} is damaged: it ends early (reading clip {clip_id!r}).")


_thread = threading.local()


def _scratch(size_bytes: int) -> memoryview:
    """Memory that this thread uses again and again: to get fresh memory costs more than the read."""
    buffer: bytearray = getattr(_thread, "buffer", bytearray())
    if len(buffer) < size_bytes:
        _thread.buffer = buffer = bytearray(size_bytes)
    return memoryview(buffer)[:size_bytes]


def verify_shard(path: Path, record: Record) -> list[int]:
    """The numbers of the chunks that differ from their record; -1 stands for the bytes outside of chunks.

    Reads the whole file. Raises OSError when it can't be read.
    """
    damaged = []
    with path.open("rb", buffering=0) as file:
        for number, (offset, size, checksum) in enumerate(record.chunks.tolist()):
            data = os.pread(file.fileno(), size, offset)
            if len(data) != size or xxhash.xxh3_64_intdigest(data) != checksum:
                damaged.append(number)
    if rest_checksum(path, record.chunks) != record.rest_checksum:
        damaged.append(-1)
    return damaged
