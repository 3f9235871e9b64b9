"""Containers: the file that a shard is, and the file that makes a view's shards one array.

Zarr: a shard is a chunk of a sharded Zarr v3 array, and `zarr.json` describes the array.
HDF5: a shard is a file with one chunked dataset, and `features.h5` maps them into a virtual dataset.
"""

import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import google_crc32c
import numpy as np
import xxhash

from pipeline.contract import FeatureContract
from pipeline.store.format.codecs import hdf5_filter, zarr_codecs
from pipeline.store.format.layout import Layout
from pipeline.store.format.tables import FORMAT_VERSION

DATASET = "features"
_MAX_CHUNKS = os.sysconf("SC_IOV_MAX")  # of one write

PLACE_DTYPE = np.dtype([("offset", "<u8"), ("size_bytes", "<u8")])


class ShardFile(Protocol):
    """A shard being written, chunk after chunk."""

    def append(self, chunks: Sequence[memoryview]) -> None:
        """Write the next chunks, already encoded."""

    def finish(self) -> np.ndarray:
        """Close the file, which is not flushed. Returns where each chunk lies: (num_chunks,) PLACE_DTYPE."""

    def abandon(self) -> None:
        """Close the file, unfinished as it may be."""


class Container(Protocol):
    """What differs between Zarr and HDF5."""

    suffix: str  # of a shard in the journal
    master: str  # name of the file that makes shards one array

    def open_shard(self, path: Path, layout: Layout) -> ShardFile:
        """Create the file `path`, to write a shard to."""

    def shard_path(self, number: int) -> Path:
        """Where shard `number` is in a view's folder."""

    def write_master(
        self, folder: Path, *, contract: FeatureContract, layout: Layout, num_shards: int
    ) -> None:
        """Write the file `master` of a view's folder."""


class _ZarrContainer:
    suffix = ".shard"
    master = "zarr.json"

    def open_shard(self, path: Path, layout: Layout) -> ShardFile:
        return _ZarrShard(path, layout)

    def shard_path(self, number: int) -> Path:
        return Path("c") / str(number) / "0" / "0" / "0"

    def write_master(
        self, folder: Path, *, contract: FeatureContract, layout: Layout, num_shards: int
    ) -> None:
        bytes_codec = {"name": "bytes", "configuration": {"endian": "little"}}
        itemsize = np.dtype(layout.dtype).itemsize
        document = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [num_shards * layout.rows_per_shard, *layout.row_shape],
            "data_type": layout.dtype,
            "chunk_grid": {
                "name": "regular",
                "configuration": {"chunk_shape": [layout.rows_per_shard, *layout.row_shape]},
            },
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": "NaN",
            "codecs": [
                {
                    "name": "sharding_indexed",
                    "configuration": {
                        "chunk_shape": [layout.rows_per_chunk, *layout.row_shape],
                        "codecs": [bytes_codec, *zarr_codecs(layout.codec, itemsize=itemsize)],
                        "index_codecs": [bytes_codec, {"name": "crc32c"}],
                        "index_location": "end",
                    },
                }
            ],
            "dimension_names": ["row", "channel", "height", "width"],
            "attributes": _attributes(contract),
        }
        (folder / self.master).write_text(json.dumps(document, indent=1) + "\n")


class _ZarrShard:
    """Inner chunks back to back, then their index with its crc32c."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self._file = path.open("wb", buffering=0)
        self._layout = layout
        self._places: list[tuple[int, int]] = []
        self._offset = 0

    def append(self, chunks: Sequence[memoryview]) -> None:
        _write_all(self._file.fileno(), chunks)
        for chunk in chunks:
            self._places.append((self._offset, len(chunk)))
            self._offset += len(chunk)

    def finish(self) -> np.ndarray:
        index = np.full((self._layout.chunks_per_shard, 2), 2**64 - 1, dtype="<u8")  # absent: reads as NaN
        index[: len(self._places)] = self._places
        data = index.tobytes()
        _write_all(self._file.fileno(), [memoryview(data + struct.pack("<I", google_crc32c.value(data)))])
        self._file.close()
        return np.array(self._places, PLACE_DTYPE)

    def abandon(self) -> None:
        self._file.close()


class _Hdf5Container:
    suffix = ".h5"
    master = "features.h5"

    def open_shard(self, path: Path, layout: Layout) -> ShardFile:
        return _Hdf5Shard(path, layout)

    def shard_path(self, number: int) -> Path:
        return Path("shards") / f"{number}.h5"

    def write_master(
        self, folder: Path, *, contract: FeatureContract, layout: Layout, num_shards: int
    ) -> None:
        import h5py

        size = layout.rows_per_shard
        shape = (num_shards * size, *layout.row_shape)
        virtual = h5py.VirtualLayout(shape=shape, dtype=layout.dtype)
        virtual.dcpl.set_obj_track_times(False)  # the same view is the same bytes
        for number in range(num_shards):
            # Relative to the master file's folder, so that a view can be moved.
            source = h5py.VirtualSource(
                str(self.shard_path(number)), DATASET, shape=(size, *layout.row_shape), dtype=layout.dtype
            )
            virtual[number * size : (number + 1) * size] = source
        with h5py.File(folder / self.master, "w", libver="latest") as file:
            if num_shards:
                dataset = file.create_virtual_dataset(DATASET, virtual, fillvalue=np.nan)
            else:
                dataset = file.create_dataset(DATASET, shape=shape, dtype=layout.dtype, track_times=False)
            for name, value in _attributes(contract).items():
                dataset.attrs[name] = json.dumps(value) if isinstance(value, dict) else value


class _Hdf5Shard:
    """A file with one dataset. Encoded chunks are written directly, past HDF5's filters and cache."""

    def __init__(self, path: Path, layout: Layout) -> None:
        import h5py

        self._path = path
        self._layout = layout
        self._num_chunks = 0
        self._file = h5py.File(path, "w", libver="latest")
        self._dataset = self._file.create_dataset(
            DATASET,
            shape=(layout.rows_per_shard, *layout.row_shape),
            dtype=layout.dtype,
            chunks=(layout.rows_per_chunk, *layout.row_shape),
            fillvalue=np.nan,
            track_times=False,
            **hdf5_filter(layout.codec),
        )

    def append(self, chunks: Sequence[memoryview]) -> None:
        for chunk in chunks:
            row = self._num_chunks * self._layout.rows_per_chunk
            self._dataset.id.write_direct_chunk((row, 0, 0, 0), chunk)
            self._num_chunks += 1

    def finish(self) -> np.ndarray:
        places = np.zeros(self._num_chunks, PLACE_DTYPE)

        def note(chunk: Any) -> None:
            places[chunk.chunk_offset[0] // self._layout.rows_per_chunk] = (chunk.byte_offset, chunk.size)

        self._dataset.id.chunk_iter(note)
        if not (np.diff(places["offset"].astype(np.int64)) > 0).all():  # a reader takes neighbours at once
            raise RuntimeError(f"{self._path}: HDF5 did not place the chunks in the order of their writing.")
        self._file.close()
        return places

    def abandon(self) -> None:
        self._file.close()


CONTAINERS: dict[str, Container] = {"zarr": _ZarrContainer(), "hdf5": _Hdf5Container()}


def rest_checksum(path: Path, places: np.ndarray) -> int:
    """xxh3-64 of all bytes of the shard file `path` that are in no chunk; `places` as PLACE_DTYPE."""
    order = np.argsort(places["offset"])
    starts = places["offset"][order].tolist()
    ends = (places["offset"] + places["size_bytes"])[order].tolist()
    hasher = xxhash.xxh3_64()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for start, end in zip([0, *ends], [*starts, size], strict=True):
            if start < end:
                hasher.update(os.pread(file.fileno(), end - start, start))
    return hasher.intdigest()


def _attributes(contract: FeatureContract) -> dict[str, Any]:
    return {"framecache_format_version": FORMAT_VERSION, "contract": contract.model_dump(mode="json")}


def _write_all(descriptor: int, chunks: Sequence[memoryview]) -> None:
    left = list(chunks)
    while left:
        count = os.writev(descriptor, left[:_MAX_CHUNKS])
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        if count:
            left[0] = left[0][count:]
