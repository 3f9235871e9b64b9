"""Finds the copies of damaged files in DVC's cache."""

import hashlib
import logging
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store.upkeep.care import file_identity
from stages.project.asked import mentioned_digests
from stages.project.cache import Cache, out_digest, read_if_there

log = logging.getLogger(__name__)


def damaged_objects(files: Collection[Path], *, view: Path) -> list[Path]:
    """The objects of DVC's cache that are one of `files` by another name, or a damaged copy of one.

    DVC never checks its read-only objects again: it would bring the damage back.
    """
    if not Path(".dvc").is_dir():
        return []
    identities = {file_identity(path) for path in files if path.exists()}
    cache, lock = Cache.of(Path()), read_if_there(Path("dvc.lock"))
    found = [path for path in cache.path.glob("*/*") if file_identity(path) in identities]
    names = {str(path.relative_to(view)) for path in files if path.is_relative_to(view)}
    try:
        digest = out_digest(lock, view)
        digests = [digest] if digest else []
    except StoreError as error:
        log.warning("%s Meanwhile, everything that it mentions is checked.", error)
        digests = mentioned_digests(lock)
    listings = [cache.listing(digest) or {} for digest in digests]
    copies = [cache.object(md5) for listing in listings for name, md5 in listing.items() if name in names]
    return found + [
        path for path in copies if path.exists() and _md5(path) != f"{path.parent.name}{path.name}"
    ]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
