"""What a project needs of the journal: its workspaces, and every revision and experiment."""

import contextlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pipeline.errors import StoreError
from pipeline.store.format.records import RECORD_SUFFIX
from pipeline.store.upkeep.gc import Need
from pipeline.store.view import INDEX_NAME
from stages.places import FEATURES
from stages.project.asked import asked_fields, fitting, mentioned_digests
from stages.project.cache import Cache, out_digest, read_if_there
from stages.project.git import is_in_git
from stages.project.history import read_history, read_reflogs, states
from stages.project.workspaces import inside, workspaces_of

_QUEUES = ("refs/exps/celery/stash", "refs/exps/stash")


def needs(project: Path) -> list[Need]:
    """What a project needs of the journal: its workspaces, revisions and experiments, also queued ones.

    A revision that can't be read is named, and needs everything that it may have named. Raises StoreError
    when git or DVC can't be asked.
    """
    found = [need for folder in workspaces_of(project) for need in _workspace_needs(folder, project)]
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


def _workspace_needs(folder: Path, project: Path) -> Iterator[Need]:
    """The shards of the view, and those that an unfinished extraction has committed since its publication."""
    taps = [tap for tap in inside(folder / FEATURES) if tap.is_dir()]
    records = [path for tap in taps for path in inside(tap / "records") if path.suffix == RECORD_SUFFIX]
    published = [tap.joinpath(INDEX_NAME).stat().st_mtime for tap in taps if (tap / INDEX_NAME).exists()]
    params = read_if_there(folder / "params.yaml")
    yield _unsure(
        f"workspace {folder.resolve()}",
        params,
        with_defaults=folder.samefile(Path()),  # others may have other code
        shard_ids=frozenset(path.stem for path in records),
        since_seconds=max(published, default=0),
    )
    cache = None
    if (folder / ".dvc").is_dir():
        # An experiment may be just being set up, or have been killed then.
        with contextlib.nullcontext() if folder == project else contextlib.suppress(StoreError):
            cache = Cache.of(folder)
    yield from _lock_needs(
        f"dvc.lock of {folder.resolve()}", read_if_there(folder / "dvc.lock"), params, cache
    )


def _lock_needs(name: str, lock: bytes, params: bytes, cache: Cache | None) -> Iterator[Need]:
    """The shards of the features that a dvc.lock names; without a list of them, all that fit the parameters.

    For a lock that can't be read, both: the shards of all folders that it mentions, and all that fit.
    """
    try:
        digest = out_digest(lock, FEATURES)
        digests, doubt = [digest] if digest else [], ""
    except StoreError:
        digests, doubt = mentioned_digests(lock), "its dvc.lock can't be read"
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
    name: str,
    params: bytes,
    *,
    with_defaults: bool = False,
    shard_ids: frozenset[str] = frozenset(),
    since_seconds: float = 0,
) -> Need:
    """A need of all shards that fit a params.yaml, and of those that are known."""
    if asked_fields(params, with_defaults=with_defaults) is None:
        name += ": its params.yaml can't be read, so everything is kept"
    fits = fitting(params, with_defaults=with_defaults)
    return Need(name, shard_ids, fits=fits, since_seconds=since_seconds)
