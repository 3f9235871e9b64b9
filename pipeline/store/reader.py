"""FeatureView: reads a tap's features, straight from the shards' files into the caller's buffer.

Threads may share a view. It opens all its files at once, relative to one folder handle: files of a view
that is published later never mix in.
"""

import bisect
import contextlib
import errno
import json
import mmap
import os
import resource
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.contract import FeatureContract
from pipeline.errors import DamagedError, MissingClipError, MissingFeaturesError, MissingTapError, StoreError
from pipeline.store.format.containers import CONTAINERS, DATASET
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import check_version
from pipeline.store.format.rows import ShardRows
from pipeline.store.format.tables import clips_table, unseal
from pipeline.store.view import CHUNKS_NAME, INDEX_NAME, TIMES_NAME


def open_view(path: Path) -> "FeatureView":
    """The view of one tap, e.g. `features/layer4`.

    Raises MissingTapError or MissingFeaturesError when it or a file of it is not there, DamagedError, and
    StoreError for a view of a newer version or when too few files may be open.
    """
    return FeatureView(path)


class FeatureView:
    """One tap's features: clips by id, each an array (T, C, H, W) in `dtype`.

    Attributes: path, contract, layout, map_shape (C, H, W), dtype, digest (of content and index).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._closer = contextlib.ExitStack()
            self._folder = self._open_folder()
            try:
                return self._open()
            except BaseException as error:
                replaced = isinstance(error, StoreError) and self._is_replaced()
                self.close()
                if not replaced:
                    raise

    def _open_folder(self) -> int:
        try:
            folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            others = sorted(index.parent.name for index in self.path.parent.glob(f"*/{INDEX_NAME}"))
            if others:
                raise MissingTapError(
                    f"No features at {self.path}. There are those of {', '.join(others)}."
                ) from None
            raise MissingFeaturesError(f"No features at {self.path}.") from None
        self._closer.callback(os.close, folder)
        return folder

    def _is_replaced(self) -> bool:
        """Whether another view took this one's place while it was being opened."""
        try:
            return not os.path.samestat(self.path.stat(), os.fstat(self._folder))
        except FileNotFoundError:
            return False

    def _open(self) -> None:
        if not (self.path / INDEX_NAME).exists():
            raise MissingFeaturesError(f"{self.path} is no framecache view: it has no {INDEX_NAME}.")
        data = self._map(INDEX_NAME)
        index, metadata = unseal(data, path=self.path / INDEX_NAME)
        check_version(int(metadata["format_version"]), path=self.path / INDEX_NAME)
        self.contract = FeatureContract.model_validate_json(metadata["contract"])
        self.layout = Layout.from_json(metadata["layout"])
        self.map_shape = self.layout.row_shape
        self.dtype = np.dtype(self.layout.dtype)
        self.digest = xxhash.xxh3_128_hexdigest(data)
        self._index = index
        self._ids = index["clip_id"].combine_chunks() if len(index) else pa.array([], pa.string())
        self._num_frames = index["num_frames"].to_numpy()
        self._first_time = index["first_time"].to_numpy()
        spans = index["spans"].combine_chunks() if len(index) else None
        self._span_offsets = spans.offsets.to_numpy() if spans is not None else np.zeros(1, np.int32)
        flat = spans.flatten() if spans is not None else None
        self._spans = [] if flat is None else [flat.field(i).to_numpy().data for i in range(3)]
        self._shard_ids: list[str] = json.loads(metadata["shards"])
        self._first_chunk = np.cumsum([0, *json.loads(metadata["num_chunks"])]).tolist()
        self._container = CONTAINERS[self.layout.format]
        self._descriptors = self._open_shards()
        self._shards: dict[int, ShardRows] = {}
        self._positions: dict[str, int] = {}
        # Mapped now, so that they outlive a later publication; checked when they are first needed.
        self._times_file, self._chunks_file = self._map(TIMES_NAME), self._map(CHUNKS_NAME)

    def _open_shards(self) -> list[int]:
        paths = [self._container.shard_path(number) for number in range(len(self._shard_ids))]
        descriptors = []
        for path in paths:
            descriptors.append(self._open_file(str(path)))
            self._closer.callback(os.close, descriptors[-1])
        return descriptors

    def _open_file(self, name: str) -> int:
        try:
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            raise MissingFeaturesError(f"{self.path / name} is missing.") from None
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            raise StoreError(
                f"{self.path} has {len(self._shard_ids)} shards, whose files are open at the same time, but"
                f" this process may open only {limit} files. Raise its limit (`ulimit -n 65536`)."
            ) from None

    def _map(self, name: str) -> mmap.mmap:
        descriptor = self._open_file(name)
        try:
            if os.fstat(descriptor).st_size == 0:
                raise DamagedError(f"{self.path / name} is damaged: it is empty.")
            return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        finally:
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, clip_id: str) -> bool:
        return self._find(clip_id) is not None

    def clip_ids(self) -> list[str]:
        """All clips, sorted."""
        return list(self._ids.to_pylist())

    def num_frames(self, clip_id: str) -> int:
        """How many frames a clip has here. Raises MissingClipError."""
        return int(self._num_frames[self._position(clip_id)])

    def frame_seconds(self, clip_id: str) -> np.ndarray:
        """Presentation times (T,) float64 in seconds from the source's start. Raises MissingClipError."""
        position = self._position(clip_id)
        first = self._first_time[position]
        return self._times[first : first + self._num_frames[position]]

    @cached_property
    def _times(self) -> np.ndarray:
        table, _ = unseal(self._times_file, path=self.path / TIMES_NAME)
        times: np.ndarray = table["frame_seconds"].to_numpy()
        return times

    @cached_property
    def _chunks(self) -> dict[str, np.ndarray]:
        table, _ = unseal(self._chunks_file, path=self.path / CHUNKS_NAME)
        return {name: table[name].to_numpy() for name in table.column_names}

    def _shard(self, number: int) -> ShardRows:
        shard = self._shards.get(number)
        if shard is None:
            chunks = slice(self._first_chunk[number], self._first_chunk[number + 1])
            shard = ShardRows(
                self._descriptors[number],
                layout=self.layout,
                chunks={name: column[chunks] for name, column in self._chunks.items()},
                name=f"Shard {self._shard_ids[number]} ({self.path / self._container.shard_path(number)})",
            )
            shard = self._shards.setdefault(number, shard)  # another thread's, if it was faster
        return shard

    def read(self, clip_id: str, *, first_frame: int = 0, num_frames: int | None = None) -> np.ndarray:
        """Features (T, C, H, W) of a clip, or of some consecutive frames of it. Raises as `read_into`."""
        count = self.num_frames(clip_id) - first_frame if num_frames is None else num_frames
        out = np.empty((count, *self.map_shape), self.dtype)
        self.read_into(clip_id, out, first_frame=first_frame)
        return out

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:
        """Fill `out` (T, C, H, W), C-contiguous and of the view's dtype, with frames from `first_frame`.

        Raises MissingClipError, DamagedError, and ValueError for another kind of array or for frames that
        the clip does not have.
        """
        position = self._position(clip_id)
        total = int(self._num_frames[position])
        if first_frame < 0 or first_frame + len(out) > total:
            raise ValueError(
                f"Clip {clip_id!r} has frames 0 to {total - 1}, not {first_frame} to"
                f" {first_frame + len(out) - 1}."
            )
        if out.shape[1:] != self.map_shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"`out` is {out.dtype} {out.shape}, and must be C-contiguous {self.dtype}"
                f" ({len(out)}, {', '.join(map(str, self.map_shape))})."
            )
        buffer = out.reshape(-1).view(np.uint8).data
        shards, rows, counts = self._spans
        skip = first_frame
        for i in range(self._span_offsets[position], self._span_offsets[position + 1]):
            if not buffer:
                return
            if skip >= counts[i]:
                skip -= counts[i]
                continue
            count = min(counts[i] - skip, len(buffer) // self.layout.row_bytes)
            size = count * self.layout.row_bytes
            self._shard(shards[i]).read_into(buffer[:size], row=rows[i] + skip, clip_id=clip_id)
            buffer, skip = buffer[size:], 0

    def table(self) -> pa.Table:
        """Where the rows (N, C, H, W) of each clip are: a line a row span, sorted by row.

        Columns: clip_id; row and num_rows (int64), so that rows[row : row + num_rows] are consecutive frames
        of the clip; first_frame (int64), which of the clip's frames the span starts with; frame_seconds (a
        list of float64), when each frame is shown, from the source's start. A clip has one line, or several
        where it crosses shards. The file clips.parquet of the view has the same table.
        """
        return clips_table(self._index, self._times, rows_per_shard=self.layout.rows_per_shard)

    def zarr(self) -> Any:
        """The view's rows (N, C, H, W) as a read-only zarr.Array; `table` says which are whose.

        Raises TypeError for a view that is stored as HDF5.
        """
        self._refuse_unless("zarr")
        import zarr

        return zarr.open_array(self.path, mode="r")

    def h5py(self) -> Any:
        """The view's rows (N, C, H, W) as an h5py.Dataset, until the view is closed; see `table`.

        Raises TypeError for a view that is stored as Zarr.
        """
        self._refuse_unless("hdf5")
        import h5py
        import hdf5plugin  # noqa: F401 (h5py finds the codecs of compressed chunks)

        return self._closer.enter_context(h5py.File(self.path / self._container.master))[DATASET]

    def dask(self) -> Any:
        """The rows (M, C, H, W) of clips alone, in storage order, as a dask.array.Array.

        They are the rows of `table()`, one line after the other. Of an HDF5 view it can be computed until the
        view is closed.
        """
        import dask.array

        arrays: Any = dask.array
        array = self.zarr() if self.layout.format == "zarr" else self.h5py()
        rows = arrays.from_array(array, chunks=("auto", -1, -1, -1), lock=self.layout.format == "hdf5")
        table = self.table()
        starts, counts = table["row"].to_numpy(), table["num_rows"].to_numpy()
        ends = starts + counts
        is_first, is_last = starts != np.append(-1, ends[:-1]), ends != np.append(starts[1:], -1)
        runs = zip(starts[is_first].tolist(), ends[is_last].tolist(), strict=True)
        return arrays.concatenate([rows[first:end] for first, end in runs] or [rows[:0]])

    def _refuse_unless(self, form: str) -> None:
        if self.layout.format != form:
            name = {"zarr": "Zarr: take zarr()", "hdf5": "HDF5: take h5py()"}[self.layout.format]
            raise TypeError(f"{self.path} is stored as {name}.")

    def _find(self, clip_id: str) -> int | None:
        """Position in the index, remembered from the first call; None for an unknown clip."""
        known = self._positions.get(clip_id)
        if known is not None:
            return known
        position = bisect.bisect_left(self._ids, clip_id, key=lambda value: str(value.as_py()))
        if position == len(self._ids) or self._ids[position].as_py() != clip_id:
            return None
        self._positions[clip_id] = position
        return position

    def _position(self, clip_id: str) -> int:
        position = self._find(clip_id)
        if position is None:
            raise MissingClipError(f"Clip {clip_id!r} has no features in {self.path}.")
        return position

    def __reduce__(self) -> tuple[type[Self], tuple[Path]]:
        """A copy in another process opens the view again."""
        return type(self), (self.path,)

    def close(self) -> None:
        """Close the view's files: nothing can be read any more."""
        self._closer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
