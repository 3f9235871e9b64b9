"""DVC's cache, and what dvc.lock says of it."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from pipeline.errors import StoreError
from pipeline.system.files import file_lock

log = logging.getLogger(__name__)

MALFORMED = (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Cache:
    """DVC's cache of objects, by md5."""

    path: Path

    @classmethod
    def of(cls, project: Path) -> "Cache":
        """The cache of a project. Raises StoreError when DVC can't read its own settings there."""
        from dvc.exceptions import DvcException
        from dvc.repo import Repo  # takes a second to import

        try:
            with Repo(str(project)) as repo:
                return cls(Path(repo.cache.local.path))
        except DvcException as error:
            raise StoreError(f"DVC does not know its cache in {project.resolve()}: {error}") from error

    def object(self, md5: str) -> Path:
        """The file with this content, whether it is there or not."""
        return self.path / md5[:2] / md5[2:]

    def listing(self, md5: str) -> dict[str, str] | None:
        """{path inside: md5} of a folder (`md5` ends with .dir); None when it is missing or damaged."""
        path = self.object(md5)
        if not path.exists():
            return None
        try:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
        except MALFORMED:
            return None


def tracked_files(path: Path) -> dict[str, Path]:
    """{path inside: file in DVC's cache} of the folder `path`, an out of dvc.lock; empty if it is none.

    Raises StoreError when dvc.lock can't be read.
    """
    digest = out_digest(read_if_there(Path("dvc.lock")), path)
    if digest is None:
        return {}
    cache = Cache.of(Path())
    return {name: cache.object(md5) for name, md5 in (cache.listing(digest) or {}).items()}


def put_into_cache(path: Path) -> None:
    """Put a stage's out into DVC's cache, one process at a time; nothing where DVC has not started the stage.

    DVC does so itself after the stage, but without a lock. As root, two of its processes that put the same
    new file there at once can empty it: to clone a file, DVC (3.67) first opens its target with O_TRUNC, and
    that may by then be the same file. What is in the cache already DVC leaves alone.

    Raises StoreError when DVC fails.
    """
    if "DVC_STAGE" not in os.environ:
        return
    from dvc.exceptions import DvcException
    from dvc.fs import localfs
    from dvc.repo import Repo  # takes a second to import
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.transfer import transfer

    try:
        with Repo() as repo:  # reads no dvc.yaml, which may be edited by now
            cache = repo.cache.local
            with file_lock(Path(repo.cache.local_cache_dir) / "framecache.lock", on_wait=_say_waiting):
                staging, _, found = build(
                    cache,
                    str(path.absolute()),
                    localfs,
                    "md5",
                    ignore=repo.dvcignore,
                    checksum_jobs=localfs.hash_jobs,
                )
                links = cache.cache_types[:1] == ["hardlink"]
                done = transfer(staging, cache, {found.hash_info}, shallow=False, hardlink=links)
    except DvcException as error:
        raise StoreError(f"DVC can't put {path} into its cache: {error}") from error
    if done.failed:
        raise StoreError(f"DVC can't put {path} into its cache, {cache.path}.")


def _say_waiting(holder: str) -> None:
    log.info("Waiting for DVC's cache: %s.", holder)


def out_digest(lock: bytes, path: Path) -> str | None:
    """The md5 that a dvc.lock has of the folder `path`. Raises StoreError when the lock can't be read."""
    try:
        stages = (yaml.safe_load(lock) or {}).get("stages") or {}
        outs = [out for stage in stages.values() for out in stage.get("outs") or []]
        for out in outs:
            if PurePosixPath(out["path"]) == PurePosixPath(path) and out.get("md5", "").endswith(".dir"):
                return str(out["md5"])
    except MALFORMED as error:
        raise StoreError(
            "dvc.lock can't be read, perhaps for a merge conflict. Mend it, or take one that was committed:"
            " `git checkout REVISION -- dvc.lock`."
        ) from error
    return None


def read_if_there(path: Path) -> bytes:
    """The content of a file; nothing where there is none."""
    return path.read_bytes() if path.exists() else b""
