"""Finds features that an earlier run left with DVC, so that a journal that is new can take them over.

`dvc pull` fills DVC's cache and the workspace, not the journal; and DVC removes `features/` before
extraction runs. So the files are looked up in DVC's cache, by the hash that dvc.lock has of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import yaml

from pipeline.store import Journal
from pipeline.store.records import RECORD_SUFFIX
from pipeline.store.view import INDEX_NAME, RECORDS_NAME, index_shards


def adopt_view(journal: Journal, *, path: Path) -> int:
    """Take over the shards of the view `path`, or of what dvc.lock names there; how many."""
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return adopt_files(journal, files or _tracked_files(path))


def adopt_files(journal: Journal, files: Mapping[str, Path]) -> int:
    """Take over the shards of a view given as {path inside the view: file}; how many were new."""
    num_adopted = 0
    for name, file in files.items():
        tap, _, rest = name.partition("/")
        if rest != INDEX_NAME:
            continue
        for shard_id, shard_name in index_shards(file).items():
            record_file = files.get(f"{tap}/{RECORDS_NAME}/{shard_id}{RECORD_SUFFIX}")
            if record_file is None or not record_file.exists():
                continue
            data = record_file.read_bytes()
            shard = files.get(f"{tap}/{shard_name}")
            if shard is not None and shard.exists():
                num_adopted += journal.adopt(data, shard, origin=str(record_file))
    return num_adopted


def _tracked_files(path: Path) -> dict[str, Path]:
    """The files of the DVC out `path` as dvc.lock names them, in DVC's cache."""
    lock = Path("dvc.lock")
    if not lock.exists():
        return {}
    stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {})
    digests = [
        out["md5"]
        for stage in stages.values()
        for out in stage.get("outs", [])
        if PurePosixPath(out["path"]) == PurePosixPath(path) and out.get("md5", "").endswith(".dir")
    ]
    if not digests:
        return {}
    from dvc.repo import Repo  # takes a second to import

    with Repo() as repo:
        cache = repo.cache.local
        listing = Path(cache.oid_to_path(digests[0]))
        if not listing.exists():
            return {}
        return {
            entry["relpath"]: Path(cache.oid_to_path(entry["md5"]))
            for entry in json.loads(listing.read_text())
        }
