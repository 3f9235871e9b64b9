"""FeatureView: reads a tap's features, straight from the shards' files into the caller's buffer.

Threads may share a view.
"""

import bisect
import contextlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import pyarrow as pa

from pipeline.errors import MissingClipError
from pipeline.store.folder import Folder
from pipeline.store.format.containers import CONTAINERS, DATASET
from pipeline.store.format.tables import clips_table
from pipeline.store.view import ViewIndex


class Rows(Protocol):
    """The rows of a shard."""

    def read_into(self, buffer: memoryview, *, row: int, clip_id: str) -> None:
        """Fill `buffer` with the rows from `row` on, each checked against its chunk's checksum."""


class ViewFiles(Protocol):
    """The open files of a view, wherever they are. All are of one version of the view."""

    name: str  # for messages
    index: ViewIndex

    @property
    def path(self) -> Path:
        """Their folder. Raises TypeError when they are in no folder of this machine."""

    def open_shard(self, number: int) -> Rows:
        """The rows of a shard, by its place in the index. Raises StoreError."""

    def times(self) -> np.ndarray:
        """The times of all clips' frames in seconds, in the index's order, float64. Raises StoreError."""

    def close(self) -> None:
        """Close the files."""


def open_view(path: Path) -> "FeatureView":
    """The view of one tap, e.g. `features/layer4`.

    Raises MissingTapError or MissingFeaturesError when it or a file of it is not there, DamagedError, and
    StoreError for a view of a newer version or when too few files may be open.
    """
    return FeatureView(partial(Folder, path))


class FeatureView:
    """One tap's features: clips by id, each an array (T, C, H, W) in `dtype`.

    Attributes: contract, layout, map_shape (C, H, W), dtype, digest (of content and index).
    """

    def __init__(self, open_files: Callable[[], ViewFiles]) -> None:
        """`open_files` opens the view's files, here and in processes that get a copy of the view."""
        self._open_files = open_files
        self._closer = contextlib.ExitStack()
        self._files = self._closer.enter_context(contextlib.closing(open_files()))
        self._name = self._files.name
        index = self._files.index
        self.contract, self.layout, self.digest = index.contract, index.layout, index.digest
        self.map_shape = self.layout.row_shape
        self.dtype = np.dtype(self.layout.dtype)
        self._index = index.clips
        self._ids = self._index["clip_id"].combine_chunks() if len(self._index) else pa.array([], pa.string())
        self._num_frames = self._index["num_frames"].to_numpy()
        self._first_time = self._index["first_time"].to_numpy()
        self._span_offsets, spans = index.spans()
        self._spans = [column.data for column in spans]
        self._shards: dict[int, Rows] = {}
        self._positions: dict[str, int] = {}

    @property
    def path(self) -> Path:
        """The view's folder. Raises TypeError for a view that is in no folder of this machine."""
        return self._files.path

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
        return self._files.times()

    def _shard(self, number: int) -> Rows:
        shard = self._shards.get(number)
        if shard is None:
            # Another thread's, if it was faster.
            shard = self._shards.setdefault(number, self._files.open_shard(number))
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

        return self._closer.enter_context(h5py.File(self.path / CONTAINERS["hdf5"].master))[DATASET]

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
            raise TypeError(f"{self._name} is stored as {name}.")

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
            raise MissingClipError(f"Clip {clip_id!r} has no features in {self._name}.")
        return position

    def __reduce__(self) -> tuple[type[Self], tuple[Callable[[], ViewFiles]]]:
        """A copy in another process opens the view again."""
        return type(self), (self._open_files,)

    def close(self) -> None:
        """Close the view's files: nothing can be read any more."""
        self._closer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
