"""Layout: how a tap's rows lie in files. It never changes a value, so it is no part of the contract."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

# A compressed chunk is decoded whole: small, so that a clip's rows need little more than their own
# chunks. A plain one is read by the row: large, because the disk takes many small writes slowly.
_COMPRESSED_CHUNK_BYTES = 64 << 10
_PLAIN_CHUNK_BYTES = 256 << 10


class StoreConfig(BaseModel):
    """How features are stored. Changing it repacks what exists and recomputes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["zarr", "hdf5"] = "zarr"  # container of the view
    codec: Literal["none", "lz4", "zstd"] = "none"  # of each chunk, after a bitshuffle
    rows_per_chunk: Annotated[int, Field(ge=1)] | None = None  # null: about 256 KiB, compressed 64 KiB
    shard_mb: Annotated[int, Field(ge=1, le=4096)] = 256  # size of a full shard, before compression
    commit_seconds: Annotated[float, Field(gt=0)] = 20.0  # a crash loses at most this much work


@dataclass(frozen=True)
class Layout:
    """A StoreConfig applied to rows of one shape and dtype."""

    format: str
    codec: str
    dtype: str  # numpy name
    row_shape: tuple[int, int, int]  # (C, H, W)
    rows_per_chunk: int
    rows_per_shard: int  # a multiple of rows_per_chunk

    @classmethod
    def of(cls, config: StoreConfig, *, row_shape: tuple[int, int, int], dtype: str) -> Self:
        row_bytes = prod(row_shape) * np.dtype(dtype).itemsize
        chunk_bytes = _PLAIN_CHUNK_BYTES if config.codec == "none" else _COMPRESSED_CHUNK_BYTES
        rows_per_chunk = config.rows_per_chunk or max(1, chunk_bytes // row_bytes)
        chunks_per_shard = max(1, (config.shard_mb << 20) // (rows_per_chunk * row_bytes))
        return cls(
            format=config.format,
            codec=config.codec,
            dtype=dtype,
            row_shape=row_shape,
            rows_per_chunk=rows_per_chunk,
            rows_per_shard=rows_per_chunk * chunks_per_shard,
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        fields = json.loads(text)
        return cls(**{**fields, "row_shape": tuple(fields["row_shape"])})

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @cached_property
    def row_bytes(self) -> int:
        return prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @cached_property
    def chunk_bytes(self) -> int:
        """Of a chunk before compression."""
        return self.rows_per_chunk * self.row_bytes

    @property
    def chunks_per_shard(self) -> int:
        return self.rows_per_shard // self.rows_per_chunk

    @property
    def name(self) -> str:
        """Folder of this layout's shards in the journal."""
        return f"{self.format}-{self.codec}-{self.rows_per_chunk}x{self.chunks_per_shard}"
