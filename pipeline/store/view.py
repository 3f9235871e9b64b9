"""The view: one self-contained store per tap, which other tools read as an ordinary array.

    features/
      files.arrow                digests of the files that hold none of their own; sealed
    features/<tap>/, features/<tap>@<view>/
      zarr.json, c/<i>/0/0/0     Zarr: the array (N, C, H, W), and shard i: the journal's file
      features.h5, shards/<i>.h5 HDF5: likewise
      records/<shard id>.record  a shard's record: the journal's file
      clips.parquet              which rows of the array are which clip's, for any tool
      index.arrow                clips, sorted by id, and their rows; sealed
      times.arrow                frame times, in the index's order; sealed
      chunks.arrow               places and checksums of all chunks, shard after shard; sealed

A view is built from hardlinks under a temporary name, and published by one rename of the whole folder.
The same shards and manifest give the same bytes.
"""

import ctypes
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.contract import CENTER, FeatureContract, FrameView
from pipeline.errors import DamagedError
from pipeline.store.clips import StoredClip
from pipeline.store.format.containers import CONTAINERS
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import CHUNK_DTYPE, Record, check_version
from pipeline.store.format.tables import (
    CHUNKS_SCHEMA,
    FILES_SCHEMA,
    FORMAT_VERSION,
    INDEX_SCHEMA,
    TIMES_SCHEMA,
    clips_table,
    seal,
    unseal,
)
from pipeline.store.journal import Journal
from pipeline.system.files import (
    file_digest,
    link,
    naming_full_disk,
    partial_path,
    remove_folder,
    sync_directory,
)

INDEX_NAME = "index.arrow"
TIMES_NAME = "times.arrow"
CHUNKS_NAME = "chunks.arrow"
CLIPS_NAME = "clips.parquet"
RECORDS_NAME = "records"
FILES_NAME = "files.arrow"


def view_folder(features: Path, view: FrameView) -> Path:
    """Where a view's features are: for features/layer4 and the view flip, features/layer4@flip."""
    return features if view == CENTER else features.with_name(f"{features.name}@{view.name}")


def stream_folder(features: Path, name: str) -> Path:
    """Where a stream is: beside features/layer3 in features/<tap>, or in features-<network>/<tap>."""
    network, _, tap = name.rpartition("/")
    return (
        features.parent.with_name(f"{features.parent.name}-{network}") / tap
        if network
        else features.with_name(tap)
    )


@dataclass(frozen=True)
class TapView:
    """One tap's part of a view: which clips, and where their rows are."""

    contract: FeatureContract
    layout: Layout
    clips: Mapping[str, StoredClip]  # by clip id
    records: Mapping[str, Record]  # by shard id; at least the needed ones


def publish(journal: Journal, views: list[TapView], path: Path, *, files: Mapping[str, bytes]) -> None:
    """Replace the folder `path` by a new view: a subfolder for each tap, and `files` (content by name).

    Readers see the old view or the new one, never a mix. Raises DamagedError when a shard is missing from
    the journal, DiskFullError.
    """
    with _replacing(path) as partial:
        for view in views:
            _build_tap(journal, view, partial / view.contract.name)
        for name, data in files.items():
            (partial / name).write_bytes(data)
        names = [*files, *(f"{view.contract.name}/{CLIPS_NAME}" for view in views)]
        digests = {"name": names, "digest": [file_digest(partial / name) for name in names]}
        (partial / FILES_NAME).write_bytes(seal(pa.table(digests, schema=FILES_SCHEMA), {}))


def publish_copy(source: Path, path: Path) -> None:
    """Replace the folder `path` by a view with the content of `source`, another view, by links.

    Raises DiskFullError.
    """
    with _replacing(path) as partial:
        for file in sorted(source.rglob("*")):
            target = partial / file.relative_to(source)
            if file.is_dir():
                target.mkdir()
            else:
                link(file, target)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A new folder, which replaces the folder `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.partial-*"):
        remove_folder(stale)
    partial = partial_path(path)
    partial.mkdir()
    with naming_full_disk(path):
        yield partial
        sync_directory(partial)
    if path.exists():
        _exchange(partial, path)
        remove_folder(partial)
    else:
        partial.rename(path)
    sync_directory(path.parent)


def _build_tap(journal: Journal, view: TapView, folder: Path) -> None:
    directory = journal.directory(view.contract, view.layout)
    shard_ids = sorted({span.shard_id for clip in view.clips.values() for span in clip.spans})
    shard_numbers = {shard_id: number for number, shard_id in enumerate(shard_ids)}
    container = CONTAINERS[view.layout.format]
    (folder / RECORDS_NAME).mkdir(parents=True)
    for shard_id, number in shard_numbers.items():
        record = view.records[shard_id]
        target = folder / container.shard_path(number)
        target.parent.mkdir(parents=True, exist_ok=True)
        shard = directory / record.shard_name
        if not shard.exists():
            raise DamagedError(f"Shard {shard_id} ({shard}) is missing.")
        link(shard, target)
        link(directory / record.record_name, folder / RECORDS_NAME / record.record_name)

    clip_ids = sorted(view.clips)
    clips = [view.clips[clip_id] for clip_id in clip_ids]
    index = _index(clip_ids, clips, shard_numbers)
    container.write_master(folder, contract=view.contract, layout=view.layout, num_shards=len(shard_ids))
    metadata = {
        "format_version": str(FORMAT_VERSION).encode(),
        "contract": view.contract.model_dump_json().encode(),
        "layout": view.layout.to_json().encode(),
        "shards": json.dumps(shard_ids).encode(),
        "num_chunks": json.dumps([len(view.records[shard_id].chunks) for shard_id in shard_ids]).encode(),
        "master_digest": file_digest(folder / container.master),
    }
    chunks = np.concatenate([np.empty(0, CHUNK_DTYPE), *(view.records[i].chunks for i in shard_ids)])
    chunk_table = pa.table({name: chunks[name] for name in CHUNKS_SCHEMA.names}, schema=CHUNKS_SCHEMA)
    frame_seconds = _frame_times(clips, view.records)
    times = pa.table({"frame_seconds": frame_seconds}, schema=TIMES_SCHEMA)
    clip_table = clips_table(index, frame_seconds, rows_per_shard=view.layout.rows_per_shard)
    for name, data in (
        (INDEX_NAME, seal(index, metadata)),
        (TIMES_NAME, seal(times, {})),
        (CHUNKS_NAME, seal(chunk_table, {})),
        (CLIPS_NAME, _to_parquet(clip_table)),
    ):
        (folder / name).write_bytes(data)


def _to_parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue()


def _index(clip_ids: list[str], clips: list[StoredClip], shard_numbers: Mapping[str, int]) -> pa.Table:
    # Column by column: a million clips as Python lists of tuples would take 4 times as long.
    spans = [span for clip in clips for span in clip.spans]
    columns = [
        [shard_numbers[span.shard_id] for span in spans],
        [span.row for span in spans],
        [span.num_rows for span in spans],
    ]
    span_type = INDEX_SCHEMA.field("spans").type
    fields = list(span_type.value_type)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, fields, strict=True)]
    offsets = np.cumsum([0, *(len(clip.spans) for clip in clips)], dtype=np.int32)
    num_frames = np.array([clip.num_frames for clip in clips], dtype=np.int64)
    return pa.table(
        {
            "clip_id": clip_ids,
            "num_frames": num_frames,
            "first_time": np.cumsum(num_frames) - num_frames,
            "spans": pa.ListArray.from_arrays(
                offsets, pa.StructArray.from_arrays(arrays, fields=fields), type=span_type
            ),
        },
        schema=INDEX_SCHEMA,
    )


@dataclass(frozen=True)
class ViewIndex:
    """What a view's index says."""

    clips: pa.Table  # INDEX_SCHEMA
    contract: FeatureContract
    layout: Layout
    shard_ids: list[str]  # a clip's spans name a shard by its place in this list
    num_chunks: list[int]  # of each shard
    digest: str  # of content and index

    def spans(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Where each clip's spans begin and end (num_clips + 1,); of each span: shard, row, num_rows."""
        if not len(self.clips):
            return np.zeros(1, np.int32), [np.empty(0, np.int64)] * 3
        spans = self.clips["spans"].combine_chunks()
        flat = spans.flatten()
        return spans.offsets.to_numpy(), [flat.field(i).to_numpy() for i in range(3)]


def parse_index(data: Any, *, path: Path | str) -> ViewIndex:
    """The index whose file, named `path` in messages, holds `data`: bytes or a memory map.

    Raises DamagedError, or StoreError for the index of a newer version.
    """
    clips, metadata = unseal(data, path=path)
    check_version(int(metadata["format_version"]), path=path)
    return ViewIndex(
        clips=clips,
        contract=FeatureContract.model_validate_json(metadata["contract"]),
        layout=Layout.from_json(metadata["layout"]),
        shard_ids=json.loads(metadata["shards"]),
        num_chunks=json.loads(metadata["num_chunks"]),
        digest=xxhash.xxh3_128_hexdigest(data),
    )


def index_shards(path: Path) -> dict[str, Path]:
    """{shard id: its file's path inside the tap's folder}, from an index file. Raises DamagedError."""
    _, metadata = unseal(path.read_bytes(), path=path)
    container = CONTAINERS[Layout.from_json(metadata["layout"]).format]
    return {shard_id: container.shard_path(i) for i, shard_id in enumerate(json.loads(metadata["shards"]))}


def _frame_times(clips: list[StoredClip], records: Mapping[str, Record]) -> np.ndarray:
    """The times of all clips' frames, clip after clip."""
    # Times of each shard's rows, by row: a clip's are then slices of it.
    by_shard: dict[str, np.ndarray] = {}
    pieces = []
    for clip in clips:
        for span in clip.spans:
            if span.shard_id not in by_shard:
                by_shard[span.shard_id] = records[span.shard_id].frame_seconds()
            pieces.append(by_shard[span.shard_id][span.row : span.row + span.num_rows])
    return np.concatenate(pieces) if pieces else np.empty(0)


def _exchange(first: Path, second: Path) -> None:
    """Swap two names in one step (renameat2 with RENAME_EXCHANGE, Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    at_cwd, exchange = -100, 2
    if libc.renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(second))
