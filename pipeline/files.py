"""Files: atomic writes, digests of content, links.

A file appears under its name whole or not at all: it is written to a temporary name in the same
folder, flushed to the disk, and renamed.
"""

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import xxhash

log = logging.getLogger(__name__)

_READ_SIZE_BYTES = 1 << 20


def partial_path(path: Path) -> Path:
    """A fresh temporary name beside `path`, hidden from git and DVC."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it is flushed and becomes `path` when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` as the new content of `path`."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def sync_directory(path: Path) -> None:
    """Make renames and links inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def file_lock(path: Path, *, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock `path`, a file that is made; the lock dies with its process.

    While another process has it, `on_wait` is told once who that is, and the call blocks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            on_wait(file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, in {Path.cwd()}")
        file.flush()
        yield


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hardlink; across filesystems a symlink, else a copy.

    The last two warn: a symlinked file is lost with its source, a copied one takes its space twice.
    """
    try:
        os.link(source, target)
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        reason = error.strerror
    try:
        target.symlink_to(source.resolve())
        log.warning("%s is a symlink to %s (%s).", target, source, reason)
    except OSError:
        shutil.copyfile(source, target)
        log.warning("%s is a copy of %s (%s): it takes its space twice.", target, source, reason)


def file_digest(path: str | Path) -> bytes:
    """xxh3-128 of the content (16 bytes). Raises OSError when the file can't be read."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        while block := file.read(_READ_SIZE_BYTES):
            hasher.update(block)
    return hasher.digest()


class DigestCache:
    """Content digests that are not computed again for a file whose stat is unchanged.

    Keyed by device, inode, size and mtime_ns; kept in one SQLite file that any number of processes
    may use. Files changed less than two seconds ago are not remembered: a second change within the
    clock's resolution would go unseen.
    """

    _RACY_NS = 2_000_000_000

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=60, check_same_thread=False)
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS digests (device INTEGER, inode INTEGER, size INTEGER,"
            " mtime_ns INTEGER, digest BLOB, PRIMARY KEY (device, inode)) WITHOUT ROWID"
        )
        rows = self._database.execute("SELECT device, inode, size, mtime_ns, digest FROM digests")
        self._known: dict[tuple[int, int, int, int], bytes] = {row[:4]: row[4] for row in rows}
        self._fresh: list[tuple[int, int, int, int, bytes]] = []

    def digest(self, path: str | Path) -> bytes:
        """xxh3-128 of the file's content (16 bytes). Raises OSError when it can't be read."""
        key = _identity(path)
        found = self._known.get(key)
        if found is None:
            found = file_digest(path)
            if _identity(path) == key and time.time_ns() - key[3] > self._RACY_NS:
                self._known[key] = found
                self._fresh.append((*key, found))
        return found

    def save(self) -> None:
        """Write what was learnt; a cache that can't be written costs time, not correctness."""
        try:
            with self._database:
                self._database.executemany(
                    "INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", self._fresh
                )
            self._fresh.clear()
        except sqlite3.Error as error:
            log.warning("The digest cache could not be written: %s.", error)

    def close(self) -> None:
        self.save()
        self._database.close()


def _identity(path: str | Path) -> tuple[int, int, int, int]:
    stat = os.stat(path)  # noqa: PTH116 - a million calls: Path objects would double the time
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def combined_digest(digests: Sequence[bytes], *, extra: str = "") -> bytes:
    """One 16-byte digest of several, in order, and of a text."""
    hasher = xxhash.xxh3_128(extra.encode())
    for digest in digests:
        hasher.update(digest)
    return hasher.digest()
