"""Records: a shard exists when its record does.

A record says which rows belong to which clip, the time of each row, and the place and checksum of each
chunk in the shard's file. A reader needs nothing else.
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.contract import FeatureContract
from pipeline.errors import StoreError
from pipeline.store.format.containers import CONTAINERS
from pipeline.store.format.layout import Layout
from pipeline.store.format.tables import FORMAT_VERSION, seal, unseal

RECORD_SUFFIX = ".record"
CHUNK_DTYPE = np.dtype([("offset", "<u8"), ("size_bytes", "<u8"), ("checksum", "<u8")])  # xxh3-64


@dataclass(frozen=True)
class ClipSource:
    """What identifies a clip in a record."""

    key: bytes  # 16 bytes: digest of the source's content and time range
    clip_id: str
    source: str


@dataclass(frozen=True)
class Record:
    """What a shard holds, and where."""

    shard_id: str
    contract: FeatureContract
    layout: Layout
    spans: pa.Table  # SPAN_SCHEMA
    chunks: np.ndarray  # CHUNK_DTYPE
    rest_checksum: int  # xxh3-64 of the file's other bytes
    generation: int = 0  # above 0: a copy from shards of this layout, which have lower generations

    @property
    def shard_name(self) -> str:
        """Name of the shard's file in the journal."""
        return f"{self.shard_id}{CONTAINERS[self.layout.format].suffix}"

    @property
    def record_name(self) -> str:
        """Name of the record's file, in the journal and in views."""
        return f"{self.shard_id}{RECORD_SUFFIX}"

    @property
    def num_rows(self) -> int:
        """How many rows were written, whoever they belong to.

        If the shard ends with rows of a clip that failed, those in its last chunk are not counted.
        """
        last_row = pc.max(pc.add(self.spans["row"], self.spans["num_rows"])).as_py()
        return max(int(last_row), (len(self.chunks) - 1) * self.layout.rows_per_chunk)

    def clip_sources(self) -> dict[bytes, ClipSource]:
        """The clips with rows in this shard, by key; ids and sources are those of when they were computed."""
        columns = (self.spans[name].to_pylist() for name in ("clip_key", "clip_id", "source"))
        return {key: ClipSource(key, *names) for key, *names in zip(*columns, strict=True)}

    def frame_seconds(self) -> np.ndarray:
        """Presentation time of each row's frame (rows_per_shard,) float64; NaN for rows of no clip."""
        times = np.full(self.layout.rows_per_shard, np.nan)
        first, count = self.spans["row"].to_numpy(), self.spans["num_rows"].to_numpy()
        rows = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(count.sum())
        times[rows] = self.spans["frame_seconds"].combine_chunks().flatten().to_numpy()
        return times

    def to_bytes(self) -> bytes:
        """The content of the record's file: a sealed table."""
        metadata = {
            "format_version": str(FORMAT_VERSION).encode(),
            "shard": self.shard_id.encode(),
            "contract": self.contract.model_dump_json().encode(),
            "layout": self.layout.to_json().encode(),
            "chunks": self.chunks.tobytes(),
            "rest_checksum": struct.pack("<Q", self.rest_checksum),
        }
        if self.generation:
            metadata["generation"] = str(self.generation).encode()
        return seal(self.spans, metadata)


def parse_record(data: bytes, *, path: Path | str) -> Record:
    """The record whose file, named `path` in messages, holds `data`.

    Raises DamagedError, or StoreError for the record of a newer version.
    """
    table, metadata = unseal(data, path=path)
    check_version(int(metadata["format_version"]), path=path)
    return Record(
        shard_id=metadata["shard"].decode(),
        contract=FeatureContract.model_validate_json(metadata["contract"]),
        layout=Layout.from_json(metadata["layout"]),
        spans=table,
        chunks=np.frombuffer(metadata["chunks"], CHUNK_DTYPE),
        rest_checksum=struct.unpack("<Q", metadata["rest_checksum"])[0],
        generation=int(metadata.get("generation", 0)),
    )


def read_record(path: Path) -> Record:
    """The record in the file `path`. Raises as `parse_record` does."""
    return parse_record(path.read_bytes(), path=path)


def check_version(version: int, *, path: Path | str) -> None:
    """Raise StoreError when `path` was written in the format of a newer framecache."""
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {version}; this framecache reads up to {FORMAT_VERSION}. Upgrade it."
        )
