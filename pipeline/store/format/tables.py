"""Sealed tables: Arrow IPC bytes followed by their own xxh3-128, so that damage is always seen."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from pipeline.errors import DamagedError

_DIGEST_BYTES = 16

FORMAT_VERSION = 1

SPAN_SCHEMA = pa.schema(
    [
        pa.field("clip_key", pa.binary(16), nullable=False),
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("first_frame", pa.int64(), nullable=False),  # of the clip, where this span starts
        pa.field("row", pa.int64(), nullable=False),  # of the shard, where this span starts
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("final", pa.bool_(), nullable=False),  # the clip ends with this span
        pa.field("previous_shard", pa.string()),  # holds the rows before this shard's first of the clip
        pa.field("frame_seconds", pa.list_(pa.float64()), nullable=False),  # one a row
    ]
)

INDEX_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),  # sorted
        pa.field("num_frames", pa.int64(), nullable=False),
        pa.field("first_time", pa.int64(), nullable=False),  # into the table of frame times
        pa.field(
            "spans",
            pa.list_(pa.struct([("shard", pa.int32()), ("row", pa.int64()), ("num_rows", pa.int64())])),
            nullable=False,
        ),
    ]
)

TIMES_SCHEMA = pa.schema([pa.field("frame_seconds", pa.float64(), nullable=False)])

CHUNKS_SCHEMA = pa.schema(
    [pa.field(name, pa.uint64(), nullable=False) for name in ("offset", "size_bytes", "checksum")]
)

FILES_SCHEMA = pa.schema(
    [pa.field("name", pa.string(), nullable=False), pa.field("digest", pa.binary(16), nullable=False)]
)


def seal(table: pa.Table, metadata: dict[str, bytes]) -> bytes:
    """The table with its metadata as bytes that `unseal` can check. Deterministic."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    body = sink.getvalue()
    return bytes(body) + xxhash.xxh3_128_digest(body)


def unseal(data: Any, *, path: Path | str) -> tuple[pa.Table, dict[str, bytes]]:
    """The table and its metadata from sealed bytes or a memory map, without copying. Raises DamagedError."""
    view = memoryview(data)
    body, digest = view[:-_DIGEST_BYTES], view[-_DIGEST_BYTES:]
    if len(view) <= _DIGEST_BYTES or xxhash.xxh3_128_digest(body) != bytes(digest):
        raise DamagedError(f"{path} is damaged: its checksum does not match.")
    table = pa.ipc.open_file(pa.py_buffer(body)).read_all()
    return table, {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
