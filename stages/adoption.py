"""Finds features that an earlier run left with DVC, so that a journal that is new can take them over.

`dvc pull` fills DVC's cache and the workspace, not the journal; and DVC removes `features/` before
extraction runs. So the files are looked up in DVC's cache, by the hash that dvc.lock has of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.contract import FeatureContract
from pipeline.store import Journal, repackable_contracts, stored_keys
from pipeline.store.format.records import RECORD_SUFFIX, parse_record
from pipeline.store.view import INDEX_NAME, RECORDS_NAME, index_shards
from stages.dvc_cache import tracked_files


def adopt_view(journal: Journal, *, path: Path) -> int:
    """Take over the shards of the view `path`, or of what dvc.lock names there; how many."""
    return adopt_files(journal, _view_files(path))


def adoptable_keys(path: Path, contracts: Sequence[FeatureContract]) -> dict[str, set[bytes]]:
    """By tap, the clips of which `adopt_view` would take over features that serve these contracts."""
    records = [parse_record(data, path=shard) for data, shard, _ in _shards(_view_files(path))]
    return {
        contract.tap: stored_keys(
            record for record in records if record.contract in repackable_contracts(contract)
        )
        for contract in contracts
    }


def adopt_files(journal: Journal, files: Mapping[str, Path]) -> int:
    """Take over the shards of a view given as {path inside the view: file}; how many were new."""
    return sum(journal.adopt(data, shard, origin=origin) for data, shard, origin in _shards(files))


def _view_files(path: Path) -> Mapping[str, Path]:
    """{path inside the view: file} of the view `path`, or of what dvc.lock names there."""
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return files or tracked_files(path)


def _shards(files: Mapping[str, Path]) -> Iterator[tuple[bytes, Path, str]]:
    """(record, the shard's file, the record's file) of every shard whose files are there."""
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
                yield data, shard, str(record_file)
