"""StoreConfig: how features are stored, as a user chooses it."""

from math import prod
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pipeline.registry import one_of
from pipeline.store.format.codecs import CODECS
from pipeline.store.format.containers import CONTAINERS
from pipeline.store.format.layout import Layout

# A compressed chunk is decoded whole. It is small, so that reading a clip decodes few rows of others.
# A plain chunk is read row by row. It is large, because disks are slow at many small writes.
_COMPRESSED_CHUNK_BYTES = 64 << 10
_PLAIN_CHUNK_BYTES = 256 << 10


class StoreConfig(BaseModel):
    """How features are stored. Changing it repacks what exists and recomputes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Annotated[str, one_of(CONTAINERS)] = "zarr"  # container of the view: zarr | hdf5
    codec: Annotated[str, one_of(CODECS)] = "none"  # of each chunk, after a bitshuffle: none | lz4 | zstd
    rows_per_chunk: Annotated[int, Field(ge=1)] | None = None  # null: about 256 KiB, compressed 64 KiB
    shard_mb: Annotated[int, Field(ge=1, le=4096)] = 256  # MiB of a full shard, before compression
    commit_seconds: Annotated[float, Field(gt=0)] = 20.0  # a crash loses at most this much work

    def layout(self, *, row_shape: tuple[int, int, int], dtype: str) -> Layout:
        """The layout of rows (C, H, W) of a dtype, given by its NumPy name."""
        row_bytes = prod(row_shape) * np.dtype(dtype).itemsize
        chunk_bytes = _PLAIN_CHUNK_BYTES if self.codec == "none" else _COMPRESSED_CHUNK_BYTES
        rows_per_chunk = self.rows_per_chunk or max(1, chunk_bytes // row_bytes)
        chunks_per_shard = max(1, (self.shard_mb << 20) // (rows_per_chunk * row_bytes))
        return Layout(
            format=self.format,
            codec=self.codec,
            dtype=dtype,
            row_shape=row_shape,
            rows_per_chunk=rows_per_chunk,
            rows_per_shard=rows_per_chunk * chunks_per_shard,
        )
