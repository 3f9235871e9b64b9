"""The store's tables. A sealed one is Arrow IPC bytes and their own xxh3-128: damage is always seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
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

CLIPS_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("row", pa.int64(), nullable=False),  # of the array, where the span starts; sorted
        pa.field("num_rows", pa.int64(), nullable=False),
        pa.field("first_frame", pa.int64(), nullable=False),  # of the clip, where the span starts
        pa.field("frame_seconds", pa.large_list(pa.float64()), nullable=False),  # one a row
    ]
)

TIMES_SCHEMA = pa.schema([pa.field("frame_seconds", pa.float64(), nullable=False)])

CHUNKS_SCHEMA = pa.schema(
    [pa.field(name, pa.uint64(), nullable=False) for name in ("offset", "size_bytes", "checksum")]
)

FILES_SCHEMA = pa.schema(
    [pa.field("name", pa.string(), nullable=False), pa.field("digest", pa.binary(16), nullable=False)]
)


def clips_table(index: pa.Table, frame_seconds: np.ndarray, *, rows_per_shard: int) -> pa.Table:
    """Where the rows of each clip are in a view's array: CLIPS_SCHEMA, a line a row span, by row.

    `index` is the view's index, and `frame_seconds` has the times of all its frames, in its order.
    """
    num_spans = pc.list_value_length(index["spans"]).to_numpy()
    spans = pc.list_flatten(index["spans"]).combine_chunks()
    shards, rows, counts = (spans.field(i).to_numpy().astype(np.int64) for i in range(3))
    clips = np.repeat(np.arange(len(index)), num_spans)
    ends = np.cumsum(counts)
    columns = {
        "clip_id": index["clip_id"].take(pa.array(clips)),
        "row": shards * rows_per_shard + rows,
        "num_rows": counts,
        "first_frame": ends - counts - index["first_time"].to_numpy()[clips],
        "frame_seconds": pa.LargeListArray.from_arrays(np.append(0, ends), frame_seconds),
    }
    # Two clips of the same bytes have the same rows.
    return pa.table(columns, schema=CLIPS_SCHEMA).sort_by([("row", "ascending"), ("clip_id", "ascending")])


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
