"""Layout: how a tap's rows lie in files. It never changes a value, so it is no part of the contract."""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Self

import numpy as np

from pipeline.settings.extract import StoreConfig

# A compressed chunk is decoded whole. It is small, so that reading a clip decodes few rows of others.
# A plain chunk is read row by row. It is large, because disks are slow at many small writes.
_COMPRESSED_CHUNK_BYTES = 64 << 10
_PLAIN_CHUNK_BYTES = 256 << 10


@dataclass(frozen=True)
class Layout:
    """A `StoreConfig` applied to rows of one shape and dtype."""

    format: str  # a key of CONTAINERS
    codec: str  # a key of CODECS
    dtype: str  # numpy name
    row_shape: tuple[int, int, int]  # (C, H, W)
    rows_per_chunk: int
    rows_per_shard: int  # a multiple of rows_per_chunk

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The layout that `to_json` wrote."""
        fields = json.loads(text)
        return cls(**{**fields, "row_shape": tuple(fields["row_shape"])})

    def to_json(self) -> str:
        """All fields as one JSON object."""
        return json.dumps(asdict(self))

    @cached_property
    def row_bytes(self) -> int:
        """Size of a row before compression."""
        return prod(self.row_shape) * np.dtype(self.dtype).itemsize

    @cached_property
    def chunk_bytes(self) -> int:
        """Size of a chunk before compression."""
        return self.rows_per_chunk * self.row_bytes

    @property
    def chunks_per_shard(self) -> int:
        """Number of chunks in a full shard."""
        return self.rows_per_shard // self.rows_per_chunk

    @property
    def name(self) -> str:
        """Folder of this layout's shards in the journal, e.g. `zarr-none-5x1044`."""
        return f"{self.format}-{self.codec}-{self.rows_per_chunk}x{self.chunks_per_shard}"


def layout_for(config: StoreConfig, *, row_shape: tuple[int, int, int], dtype: str) -> Layout:
    """The layout of rows (C, H, W) of a dtype, given by its NumPy name."""
    row_bytes = prod(row_shape) * np.dtype(dtype).itemsize
    chunk_bytes = _PLAIN_CHUNK_BYTES if config.codec == "none" else _COMPRESSED_CHUNK_BYTES
    rows_per_chunk = config.rows_per_chunk or max(1, chunk_bytes // row_bytes)
    chunks_per_shard = max(1, (config.shard_mb << 20) // (rows_per_chunk * row_bytes))
    return Layout(
        format=config.format,
        codec=config.codec,
        dtype=dtype,
        row_shape=row_shape,
        rows_per_chunk=rows_per_chunk,
        rows_per_shard=rows_per_chunk * chunks_per_shard,
    )
