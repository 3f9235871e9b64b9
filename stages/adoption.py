"""Finds features that an earlier run left with DVC, so that a journal that is new can take them over.

`dvc pull` fills DVC's cache and the workspace, not the journal; and DVC removes `features/` before
extraction runs. So the files are looked up in DVC's cache, by the hash that dvc.lock has of them.
"""

from collections.abc import Mapping
from pathlib import Path

from pipeline.store import Journal
from pipeline.store.records import RECORD_SUFFIX
from pipeline.store.view import INDEX_NAME, RECORDS_NAME, index_shards
from stages.dvc_cache import tracked_files


def adopt_view(journal: Journal, *, path: Path) -> int:
    """Take over the shards of the view `path`, or of what dvc.lock names there; how many."""
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return adopt_files(journal, files or tracked_files(path))


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
