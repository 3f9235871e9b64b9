"""Adoption: a journal takes over the shards of an earlier view, which a new journal lacks.

A view's files need not be in its folder any more: they are given as {path inside the view: file}.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.contract import FeatureContract
from pipeline.store import Journal, repackable_contracts, stored_keys
from pipeline.store.format.records import RECORD_SUFFIX, parse_record
from pipeline.store.view import INDEX_NAME, RECORDS_NAME, index_shards

EarlierFiles = Callable[[], Mapping[str, Path]]


def view_files(path: Path, earlier_files: EarlierFiles = dict) -> Mapping[str, Path]:
    """The files of the view in the folder `path`; where there are none, what `earlier_files` finds."""
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    return files or earlier_files()


def adopt_files(journal: Journal, files: Mapping[str, Path]) -> int:
    """Take over the shards of a view. Returns how many were not in the journal yet."""
    return sum(journal.adopt(data, shard, origin=origin) for data, shard, origin in _shards(files))


def adoptable_keys(files: Mapping[str, Path], contracts: Sequence[FeatureContract]) -> dict[str, set[bytes]]:
    """By contract's name, the clips for which `adopt_files` would give a journal features that serve it."""
    records = [parse_record(data, path=shard) for data, shard, _ in _shards(files)]
    return {
        contract.name: stored_keys(
            record for record in records if record.contract in repackable_contracts(contract)
        )
        for contract in contracts
    }


def _shards(files: Mapping[str, Path]) -> Iterator[tuple[bytes, Path, str]]:
    """(record, the shard's file, the record's file) of each shard whose files are there."""
    for name, file in files.items():
        folder, _, rest = name.partition("/")
        if rest != INDEX_NAME:
            continue
        for shard_id, shard_name in index_shards(file).items():
            record_file = files.get(f"{folder}/{RECORDS_NAME}/{shard_id}{RECORD_SUFFIX}")
            if record_file is None or not record_file.exists():
                continue
            data = record_file.read_bytes()
            shard = files.get(f"{folder}/{shard_name}")
            if shard is not None and shard.exists():
                yield data, shard, str(record_file)
