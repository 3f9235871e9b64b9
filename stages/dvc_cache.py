"""What DVC and git know of features: objects in DVC's cache, and what each revision needs of the journal."""

import contextlib
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from pipeline.contract import FeatureContract
from pipeline.errors import StoreError
from pipeline.store.format.records import RECORD_SUFFIX
from pipeline.store.upkeep.care import file_identity
from pipeline.store.upkeep.gc import Need
from pipeline.store.view import INDEX_NAME
from pipeline.system.files import make_folder, share
from stages.git_history import is_in_git, read_history, read_reflogs, states

log = logging.getLogger(__name__)

FEATURES = Path("features")

# Of a contract, what parameters alone do not say.
_UNKNOWN_FIELDS = {"weights_sha256", "mean", "std", "revision"}
_QUEUES = ("refs/exps/celery/stash", "refs/exps/stash")
# Ours, with diff3 the common ancestor's, and theirs.
_CONFLICT = re.compile(
    rb"^<{7}[^\n]*\n(.*?)(?:^\|{7}[^\n]*\n.*?)?^={7}[^\n]*\n(.*?)^>{7}[^\n]*\n?", re.DOTALL | re.MULTILINE
)
_MALFORMED = (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Cache:
    """DVC's cache of objects, by md5."""

    path: Path

    @classmethod
    def of(cls, project: Path) -> "Cache":
        """Raises StoreError when DVC can't read its own settings there."""
        from dvc.exceptions import DvcException
        from dvc.repo import Repo  # takes a second to import

        try:
            with Repo(str(project)) as repo:
                return cls(Path(repo.cache.local.path))
        except DvcException as error:
            raise StoreError(f"DVC does not know its cache in {project.resolve()}: {error}") from error

    def object(self, md5: str) -> Path:
        return self.path / md5[:2] / md5[2:]

    def listing(self, md5: str) -> dict[str, str] | None:
        """{path inside: md5} of a folder (`md5` ends with .dir); None when it is missing or damaged."""
        path = self.object(md5)
        if not path.exists():
            return None
        try:
            return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_bytes())}
        except _MALFORMED:
            return None


def share_journal(path: Path) -> None:
    """Let the group write to the journal `path`, made if it is missing, where DVC lets it write to its cache.

    `share` hands that on to what is made later.
    """
    project = Path(os.environ.get("DVC_ROOT", "."))
    if not (project / ".dvc").is_dir() or not _dvc_shares(project):
        return
    make_folder(path)
    folder = path.stat()
    if folder.st_mode & stat.S_IWGRP or folder.st_uid != os.geteuid() or not os.access(path, os.W_OK):
        return
    path.chmod(stat.S_IMODE(folder.st_mode) | stat.S_IRWXG | stat.S_ISGID)
    for each in sorted(path.rglob("*")):  # a folder before what is in it
        share(each)


def _dvc_shares(project: Path) -> bool:
    from dvc.config import Config
    from dvc.exceptions import DvcException

    try:
        return bool(Config(str(project / ".dvc"))["cache"].get("shared") == "group")
    except DvcException as error:
        raise StoreError(f"DVC can't read its settings in {project.resolve()}: {error}") from error


def tracked_files(path: Path) -> dict[str, Path]:
    """{path inside: file} of the folder `path`, an out of dvc.lock, in DVC's cache.

    Raises StoreError when dvc.lock can't be read.
    """
    digest = out_digest(_read(Path("dvc.lock")), path)
    if digest is None:
        return {}
    cache = Cache.of(Path())
    return {name: cache.object(md5) for name, md5 in (cache.listing(digest) or {}).items()}


def out_digest(lock: bytes, path: Path) -> str | None:
    """The md5 that a dvc.lock has of the folder `path`. Raises StoreError when the lock can't be read."""
    try:
        stages = (yaml.safe_load(lock) or {}).get("stages") or {}
        outs = [out for stage in stages.values() for out in stage.get("outs") or []]
        for out in outs:
            if PurePosixPath(out["path"]) == PurePosixPath(path) and out.get("md5", "").endswith(".dir"):
                return str(out["md5"])
    except _MALFORMED as error:
        raise StoreError(
            "dvc.lock can't be read, perhaps for a merge conflict. Mend it, or take one that was committed:"
            " `git checkout REVISION -- dvc.lock`."
        ) from error
    return None


def damaged_objects(files: Collection[Path], *, view: Path) -> list[Path]:
    """The objects of DVC's cache that are one of `files`, or a copy of one that is damaged too.

    DVC never reads its read-only objects again: it would bring the damage back.
    """
    if not Path(".dvc").is_dir():
        return []
    identities = {file_identity(path) for path in files if path.exists()}
    cache, lock = Cache.of(Path()), _read(Path("dvc.lock"))
    found = [path for path in cache.path.glob("*/*") if file_identity(path) in identities]
    names = {str(path.relative_to(view)) for path in files if path.is_relative_to(view)}
    try:
        digest = out_digest(lock, view)
        digests = [digest] if digest else []
    except StoreError as error:
        log.warning("%s Meanwhile all that it mentions is looked at.", error)
        digests = _mentioned(lock)
    listings = [cache.listing(digest) or {} for digest in digests]
    copies = [cache.object(md5) for listing in listings for name, md5 in listing.items() if name in names]
    return found + [
        path for path in copies if path.exists() and _md5(path) != f"{path.parent.name}{path.name}"
    ]


def needs(project: Path) -> list[Need]:
    """What a project needs of the journal: its workspace, every revision and experiment, queued ones too.

    What can't be read is named, and needs whatever it may have named.
    """
    found = [need for folder in _workspaces(project) for need in _workspace_needs(folder, project)]
    if not is_in_git(project):
        return found
    cache = Cache.of(project) if (project / ".dvc").is_dir() else None
    revisions, lost = read_history(project)
    named = [
        need
        for revision, lock, params in states(project, revisions)
        for need in _lock_needs(f"revision {revision[:7]}", lock, params, cache)
    ]
    # Few revisions change features.
    found += {need.name if need.fits else need.shard_ids: need for need in named}.values()
    queued, lost_queued = read_reflogs(project, *_QUEUES)
    found += [
        _unsure(f"queued experiment {revision[:7]}", params)
        for revision, _, params in states(project, queued)
    ]
    remedy = "git can't read it, so everything is kept: mend or delete this ref"
    return found + [
        Need(f"{ref}: {remedy}", fits=lambda _: True) for ref in dict.fromkeys(lost + lost_queued)
    ]


def _workspaces(project: Path) -> list[Path]:
    """The project's own, and those of experiments that run now: from a queue, or below standalone/."""
    running = [each for folder in _inside(project / ".dvc/tmp/exps") for each in (folder, *_inside(folder))]
    return [project, *(folder for folder in running if (folder / "params.yaml").is_file())]


def _workspace_needs(folder: Path, project: Path) -> Iterator[Need]:
    """The view's shards, and what an unfinished extraction has committed since the view was published."""
    taps = [tap for tap in _inside(folder / FEATURES) if tap.is_dir()]
    records = [path for tap in taps for path in _inside(tap / "records") if path.suffix == RECORD_SUFFIX]
    published = [tap.joinpath(INDEX_NAME).stat().st_mtime for tap in taps if (tap / INDEX_NAME).exists()]
    params = _read(folder / "params.yaml")
    yield _unsure(
        f"workspace {folder.resolve()}",
        params,
        shard_ids=frozenset(path.stem for path in records),
        since_seconds=max(published, default=0),
    )
    cache = None
    if (folder / ".dvc").is_dir():
        # An experiment may be just being set up, or have been killed then.
        with contextlib.nullcontext() if folder == project else contextlib.suppress(StoreError):
            cache = Cache.of(folder)
    yield from _lock_needs(f"dvc.lock of {folder.resolve()}", _read(folder / "dvc.lock"), params, cache)


def _lock_needs(name: str, lock: bytes, params: bytes, cache: Cache | None) -> Iterator[Need]:
    """The shards of the features that a dvc.lock names; without their list, all that fit the parameters.

    Of a lock that can't be read, both: the shards of whatever it mentions, and all that fit.
    """
    try:
        digest = out_digest(lock, FEATURES)
        digests, doubt = [digest] if digest else [], ""
    except StoreError:
        digests, doubt = _mentioned(lock), "its dvc.lock can't be read"
    listings = [cache.listing(digest) if cache else None for digest in digests]
    files = [PurePosixPath(file) for listing in listings for file in listing or ()]
    shard_ids = frozenset(file.stem for file in files if file.suffix == RECORD_SUFFIX)
    if not doubt and None in listings:
        doubt = "its list of features is not in DVC's cache"
    if doubt:
        yield _unsure(f"{name} ({doubt})", params, shard_ids=shard_ids)
    elif digests:
        yield Need(name, shard_ids)


def _unsure(
    name: str, params: bytes, *, shard_ids: frozenset[str] = frozenset(), since_seconds: float = 0
) -> Need:
    """A need of all that fits a params.yaml, and of the shards that are known."""
    if _asked(params) is None:
        name += ": its params.yaml can't be read, so everything is kept"
    return Need(name, shard_ids, fits=fitting(params), since_seconds=since_seconds)


def _mentioned(lock: bytes) -> list[str]:
    """The md5s of all folders in a dvc.lock, however damaged it is."""
    return sorted({md5.decode() for md5 in re.findall(rb"\b[0-9a-f]{32}\.dir\b", lock)})


def fitting(params: bytes) -> Callable[[FeatureContract], bool]:
    """Whether a contract may be what a params.yaml asks for; one that can't be read may ask for anything."""
    asked = _asked(params)
    if asked is None:
        return lambda _: True
    return lambda contract: any(each.differences(contract).keys() <= _UNKNOWN_FIELDS for each in asked)


def _asked(params: bytes) -> list[FeatureContract] | None:
    """What a params.yaml asks for, on both sides where it is in conflict; None when it can't be read."""
    sides = {_CONFLICT.sub(side, params) for side in (rb"\1", rb"\2")}
    try:
        return [contract for side in sides for contract in _contracts(yaml.safe_load(side))]
    except _MALFORMED:
        return None


def _contracts(document: Any) -> list[FeatureContract]:
    extract = document["extract"]
    fields = ("sampling", "preprocessing", "precision", "backend", "pooling", "dtype")
    return [
        FeatureContract(
            tap=tap,
            arch=document["weights"]["arch"],
            weights_sha256="",
            mean=(0, 0, 0),
            std=(1, 1, 1),
            **{field: extract[field] for field in fields if field in extract},
        )
        for tap in extract["taps"]
    ]


def _inside(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none. Unlike glob, raises OSError if it can't."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
