"""Folder: the files of a view on a disk.

It opens all of them at once, relative to one folder handle: files of a view that is published later never
mix in.
"""

import contextlib
import errno
import mmap
import os
import resource
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.errors import DamagedError, MissingFeaturesError, MissingTapError, StoreError
from pipeline.store.format.containers import CONTAINERS
from pipeline.store.format.rows import ShardRows
from pipeline.store.format.tables import unseal
from pipeline.store.view import CHUNKS_NAME, INDEX_NAME, TIMES_NAME, parse_index


class Folder:
    """The open files of a view in a folder: see `ViewFiles`."""

    def __init__(self, path: Path) -> None:
        """Raises MissingTapError, MissingFeaturesError, DamagedError, StoreError; see `open_view`."""
        self.path = path
        self.name = str(path)
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
        self.index = parse_index(self._map(INDEX_NAME), path=self.path / INDEX_NAME)
        self._first_chunk = np.cumsum([0, *self.index.num_chunks]).tolist()
        container = CONTAINERS[self.index.layout.format]
        self._shard_paths = [container.shard_path(number) for number in range(len(self.index.shard_ids))]
        self._descriptors = self._open_shards()
        # Mapped now, so that they outlive a later publication; checked when they are first needed.
        self._times_file, self._chunks_file = self._map(TIMES_NAME), self._map(CHUNKS_NAME)

    def _open_shards(self) -> list[int]:
        descriptors = []
        for path in self._shard_paths:
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
                f"{self.path} has {len(self._shard_paths)} shards, whose files are open at the same time, but"
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

    def times(self) -> np.ndarray:
        """See `ViewFiles`."""
        table, _ = unseal(self._times_file, path=self.path / TIMES_NAME)
        times: np.ndarray = table["frame_seconds"].to_numpy()
        return times

    @cached_property
    def _chunks(self) -> dict[str, np.ndarray]:
        table, _ = unseal(self._chunks_file, path=self.path / CHUNKS_NAME)
        return {name: table[name].to_numpy() for name in table.column_names}

    def open_shard(self, number: int) -> ShardRows:
        """See `ViewFiles`."""
        chunks = slice(self._first_chunk[number], self._first_chunk[number + 1])
        return ShardRows(
            self._descriptors[number],
            layout=self.index.layout,
            chunks={name: column[chunks] for name, column in self._chunks.items()},
            name=f"Shard {self.index.shard_ids[number]} ({self.path / self._shard_paths[number]})",
        )

    def close(self) -> None:
        """Close all files."""
        self._closer.close()
