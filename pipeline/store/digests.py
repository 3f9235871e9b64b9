"""Content digests of source files, computed again only when a file's stat has changed."""

import contextlib
import logging
import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from pipeline.errors import DamagedError
from pipeline.store.format.tables import seal, unseal
from pipeline.system.files import FileStamp, file_digest, file_stamp, write_atomically
from pipeline.system.parallel import in_threads

log = logging.getLogger(__name__)

DIGEST_BYTES = 16

_SCHEMA = pa.schema(
    [
        pa.field(name, pa.int64(), nullable=False)
        for name in ("device", "inode", "size_bytes", "mtime_ns", "ctime_ns")
    ]
    + [pa.field("digest", pa.binary(DIGEST_BYTES), nullable=False)]
)

# A file changed within the clock's resolution of its digest could change again unseen.
_RACY_NS = 2_000_000_000

_NUM_THREADS = 8  # a network disk answers several requests as fast as one


class DigestCache:
    """Content digests by file identity, kept in the file `path`: read at once, replaced by `save`.

    When two processes save, the later table stays, and the other process's files are digested once more.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[FileStamp, bytes] = {}
        self._changed = False
        if path.exists():
            try:
                table, _ = unseal(path.read_bytes(), path=path)
            except DamagedError:
                log.warning("%s is damaged: all sources are read again.", path)
                return
            if table.schema.names != _SCHEMA.names:
                return  # of an earlier version: the sources are read again
            *stat, digests = (column.to_pylist() for column in table.columns)
            self._known = dict(zip(zip(*stat, strict=True), digests, strict=True))

    def digest(self, path: str | Path) -> bytes:
        """xxh3-128 of the file's content, 16 bytes. Raises OSError when the file can't be read."""
        stamp = file_stamp(path)
        found = self._known.get(stamp)
        if found is None:
            found = file_digest(path)
            if file_stamp(path) == stamp and time.time_ns() - max(stamp[3:]) > _RACY_NS:
                self._known[stamp] = found
                self._changed = True
        return found

    def known(self, path: str) -> bytes | None:
        """The digest of a file that was digested before and has not changed since; None for any other."""
        try:
            return self._known.get(file_stamp(path))
        except OSError:
            return None

    def unknown(self, paths: Iterable[str]) -> dict[str, int]:
        """The files among `paths` whose content must be read, with their sizes in bytes."""
        sizes = {}
        for path in paths:
            with contextlib.suppress(OSError):  # raised when its digest is asked for
                stamp = file_stamp(path)
                if stamp not in self._known:
                    sizes[path] = stamp[2]
        return sizes

    def forget(self, paths: Iterable[str]) -> None:
        """Have the content of these files read again, whatever their stat says."""
        for path in paths:
            with contextlib.suppress(OSError):  # raised when its digest is asked for
                self._known.pop(file_stamp(path), None)

    def learn(self, paths: Collection[str]) -> Iterator[str]:
        """Digest these files, several at once; yields each path when it is done."""
        return in_threads(self._learn, paths, num_threads=_NUM_THREADS)

    def _learn(self, path: str) -> str:
        with contextlib.suppress(OSError):
            self.digest(path)
        return path

    def save(self) -> None:
        """Write what was learnt, if the folder may be written; digests of earlier contents are dropped."""
        if not self._changed or not os.access(self._path.parent, os.W_OK):
            return
        latest = {stamp[:2]: (*stamp[2:], digest) for stamp, digest in self._known.items()}
        rows = [(*key, *values) for key, values in sorted(latest.items())]
        table = pa.table(dict(zip(_SCHEMA.names, zip(*rows, strict=True), strict=True)), schema=_SCHEMA)
        write_atomically(self._path, seal(table, {}))
        self._changed = False
