"""Files: atomic writes, locks, links, and how to tell whether a file has changed.

A file appears under its name whole or not at all: it is written under a temporary name in the same folder,
flushed to the disk, and renamed.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import xxhash

from pipeline.errors import DiskFullError, JournalError

log = logging.getLogger(__name__)

_READ_SIZE_BYTES = 1 << 20


def partial_path(path: Path) -> Path:
    """A fresh temporary name beside `path`, hidden from git and DVC."""
    return path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Raise a DiskFullError that names `path`, a file or folder, when the block finds no space to write."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        folder = next(parent for parent in (path, *path.absolute().parents) if parent.is_dir())
        raise DiskFullError(
            f"{os.strerror(error.errno)} while writing {path}: {shutil.disk_usage(folder).free >> 20} MB are"
            " free. What was committed is kept: make space, then run the same command to go on."
        ) from error


@contextlib.contextmanager
def atomic_path(path: Path, *, read_only: bool = False) -> Iterator[Path]:
    """A temporary path to write to; it is flushed and becomes `path` when the block ends well."""
    make_folder(path.parent)
    partial = partial_path(path)
    try:
        with naming_full_disk(path):
            yield partial
            share(partial)
            if read_only:
                protect(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
            sync_directory(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes, *, read_only: bool = False) -> None:
    """Write `data` as the new content of `path`."""
    with atomic_path(path, read_only=read_only) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON. Raises ValueError for NaN and infinity, which not every reader of JSON knows."""
    write_atomically(path, f"{json.dumps(value, indent=1, allow_nan=False)}\n".encode())


def make_folder(path: Path) -> None:
    """Make a folder and the missing ones above it; each is shared as the folder is that it lies in."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    with naming_full_disk(path):
        path.mkdir(exist_ok=True)
    share(path)


def share(path: Path) -> None:
    """Let the group that may write to the folder of `path` also write to `path`, whatever the umask is.

    So one `chmod g+ws` of a folder shares all that is made in it. Files of other users stay as they are, and
    files that have a second hardlink, e.g. in DVC's read-only cache.
    """
    folder, own = path.parent.stat(), path.stat()
    shared = folder.st_mode & stat.S_IWGRP and not folder.st_mode & stat.S_ISVTX  # not /tmp
    is_folder = stat.S_ISDIR(own.st_mode)
    if not shared or own.st_uid != os.geteuid() or (own.st_nlink > 1 and not is_folder):
        return
    rights = stat.S_IRGRP | stat.S_IWGRP | (stat.S_IXGRP | folder.st_mode & stat.S_ISGID if is_folder else 0)
    # Some filesystems (FAT, some network mounts) have no modes to change, and no need to.
    with contextlib.suppress(PermissionError, NotImplementedError):
        if own.st_gid != folder.st_gid:
            os.chown(path, -1, folder.st_gid)
        path.chmod(stat.S_IMODE(own.st_mode) | rights)


def protect(path: Path) -> None:
    """Make a file read-only for its owner that will never change. Root writes to it nevertheless.

    DVC links the journal's files into its cache, and two runs that add the same file at once empty it: each
    first tries a reflink, which opens the file in the cache for writing (`reflink` in dvc_objects). A group
    that shares the file keeps the right to write, without which Linux refuses its members hardlinks.
    """
    with contextlib.suppress(PermissionError, NotImplementedError):  # as in `share`
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~(stat.S_IWUSR | stat.S_IWOTH))


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it. Raises OSError that names it."""
    try:
        shutil.rmtree(path)
    except OSError as error:  # names what is inside by its last part alone
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_directory(path: Path) -> None:
    """Make renames and links inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def file_lock(path: Path, *, on_wait: Callable[[str], None], shared: bool = False) -> Iterator[None]:
    """Hold the lock `path`, a file that is made if it is not there. The lock ends with its process.

    Either any number of processes share it, or one has it for itself. A process that has to wait blocks;
    before, `on_wait` is told who had the lock last. Raises JournalError where the filesystem has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    make_folder(path.parent)
    with path.open("a+b", buffering=0) as file:
        share(path)
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            on_wait(file.read().decode(errors="replace").strip() or "another process")
            fcntl.flock(file, kind)
        except OSError as error:
            raise JournalError(
                f"{path} can't be locked: its filesystem has no file locks (flock: {error.strerror}). Without"
                " them two runs would mix their features. Mount it with locks, or use a disk that has them."
            ) from error
        with naming_full_disk(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}, in {Path.cwd()}".encode())
        yield


def link(source: Path, target: Path, *, may_symlink: bool = True) -> None:
    """Make `target` a hardlink to the file `source`; across filesystems a symlink, or else a copy.

    A symlink and a copy come with a warning: the first is lost with its source, the second takes the space
    twice.
    """
    try:
        os.link(source, target)
        return
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
            raise
        reason = error.strerror
    if may_symlink:
        with contextlib.suppress(OSError):
            target.symlink_to(source.resolve())
            log.warning("%s is a symlink to %s (%s).", target, source, reason)
            return
    shutil.copyfile(source, target)
    log.warning("%s is a copy of %s (%s): it takes its space twice.", target, source, reason)


# Device, inode, size, mtime_ns, ctime_ns. `cp -a` and `rsync -t` restore all but the last, which no program
# can set. A new hardlink changes it too.
FileStamp = tuple[int, int, int, int, int]


def file_stamp(path: str | Path) -> FileStamp:
    """What changes when a file is replaced or written to. Raises OSError for a file that is not there."""
    stat = os.stat(path)  # noqa: PTH116 - a million calls: Path objects would double the time
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def file_digest(path: str | Path) -> bytes:
    """xxh3-128 of the content (16 bytes). Raises OSError when the file can't be read."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        while block := file.read(_READ_SIZE_BYTES):
            hasher.update(block)
    return hasher.digest()


def combined_digest(digests: Sequence[bytes], *, extra: str = "") -> bytes:
    """The 16-byte digest of several digests, in order, and of the text `extra`."""
    hasher = xxhash.xxh3_128(extra.encode())
    for digest in digests:
        hasher.update(digest)
    return hasher.digest()
