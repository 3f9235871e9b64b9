"""FileCache: files that can be fetched again, kept on the disk up to a number of bytes.

Threads and processes may share its folder. A file appears under its name whole, and the open file stays
readable when another process removes the name. Nothing is flushed: readers check what they read.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from pipeline.system.files import file_lock, make_folder, naming_full_disk, partial_path

Fetch = Callable[[], bytes | memoryview]

_SUFFIX = ".cached"  # of all files that the cache may remove from its folder
_LOCK = "cache.lock"
_NUM_LOCKS = 64


class FileCache:
    """A folder with at most `max_bytes` of fetched files; those that were not used longest make room."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        # Threads that want the same file fetch it once. Some of other files wait too, which is rare.
        self._locks = [threading.Lock() for _ in range(_NUM_LOCKS)]

    def open(self, name: str, fetch: Fetch) -> int:
        """A descriptor of the file `name`, which the caller closes. A missing file is fetched.

        A file larger than the cache is not kept. Raises DiskFullError, and what `fetch` raises.
        """
        path = self.folder / f"{name}{_SUFFIX}"
        with self._locks[hash(name) % _NUM_LOCKS]:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return self._keep(path, fetch())
        with contextlib.suppress(PermissionError):  # another user's file
            os.utime(descriptor)  # used now
        return descriptor

    def remove(self, name: str) -> None:
        """Have the file `name` fetched again."""
        (self.folder / f"{name}{_SUFFIX}").unlink(missing_ok=True)

    def _keep(self, path: Path, data: bytes | memoryview) -> int:
        if len(data) > self._max_bytes:
            descriptor = os.memfd_create(path.name)
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
                file.seek(0)
            return descriptor
        make_folder(self.folder)
        with file_lock(self.folder / _LOCK, on_wait=lambda _: None), naming_full_disk(path):
            self._make_room(len(data))
            partial = partial_path(path)
            partial.write_bytes(data)
            descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
            partial.replace(path)
        return descriptor

    def _make_room(self, size_bytes: int) -> None:
        """Remove files until so many bytes more fit. The caller holds the lock."""
        kept = []
        total = size_bytes
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if f"{_SUFFIX}.partial-" in entry.name:  # of a process that was killed
                    Path(entry.path).unlink()
                elif entry.name.endswith(_SUFFIX):
                    with contextlib.suppress(FileNotFoundError):  # `remove` was faster
                        stat = entry.stat()
                        kept.append((stat.st_mtime_ns, stat.st_size, entry.path))
                        total += stat.st_size
        for _, size, path in sorted(kept):
            if total <= self._max_bytes:
                return
            Path(path).unlink(missing_ok=True)
            total -= size
