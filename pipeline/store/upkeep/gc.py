"""Garbage of a journal: shards that nothing needs, and files that killed runs left behind."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.contract import FeatureContract
from pipeline.store.format.records import RECORD_SUFFIX
from pipeline.store.journal import Journal, read_contract
from pipeline.system.files import remove_folder

_DAY_SECONDS = 86400


@dataclass(frozen=True)
class Need:
    """Shards that somebody needs: those that are named, and those of all contracts that fit.

    Contracts stand in where names can't be known: for features that are not published yet, or whose list
    of shards is in no cache here.
    """

    name: str  # of who needs them
    shard_ids: frozenset[str] = frozenset()
    fits: Callable[[FeatureContract], bool] | None = None
    since_seconds: float = 0  # of the contracts that fit: only shards committed after this Unix time


@dataclass(frozen=True)
class Shard:
    """A shard's files, in the order in which they may be removed."""

    record: Path
    files: tuple[Path, ...]
    size_bytes: int
    is_shared: bool  # has another name, e.g. in DVC's cache: removing this one frees nothing

    @property
    def shard_id(self) -> str:
        """The id in the names of the shard's files."""
        return self.record.stem


@dataclass(frozen=True)
class SetGarbage:
    """The shards of one contract in one layout: those that are kept, and those that are removed."""

    contract: FeatureContract
    layout_name: str
    kept: tuple[Shard, ...]
    removed: tuple[Shard, ...]


@dataclass(frozen=True)
class Garbage:
    """What `remove_garbage` removes."""

    sets: tuple[SetGarbage, ...]
    leftovers: tuple[Path, ...]  # unfinished files, shards without a record
    training: tuple[Path, ...]  # states of trainings that nobody went on with, results of sweeps

    @property
    def freed_bytes(self) -> int:
        """What removing frees at once. `shared_bytes` are freed when the files' other names are gone, too."""
        shards = [shard.size_bytes for each in self.sets for shard in each.removed if not shard.is_shared]
        return sum(shards) + sum(_size_bytes(path) for path in (*self.leftovers, *self.training))

    @property
    def shared_bytes(self) -> int:
        """Size of the removed shards that have another name, e.g. in DVC's cache."""
        return sum(shard.size_bytes for each in self.sets for shard in each.removed if shard.is_shared)


def find_garbage(
    journal: Journal, needs: Collection[Need], *, now_seconds: float, training_days: float
) -> Garbage:
    """What no need covers, and what training has left for more than `training_days`.

    To remove it, hold `journal.exclusive` from before the needs are collected. Raises DamagedError for a
    damaged contract.
    """
    named = frozenset[str]().union(*(need.shard_ids for need in needs))
    sets = []
    leftovers = list(journal.path.glob(".*.partial-*"))
    for folder in sorted(journal.path.glob("contracts/*/")):
        leftovers += folder.glob(".*.partial-*")
        for directory in sorted(folder.glob("*/")):
            shards = list(_shards(directory))
            known = {path for shard in shards for path in shard.files}
            leftovers += [path for path in sorted(directory.iterdir()) if path not in known]
            if not shards:
                continue
            contract = read_contract(folder / "contract.json")
            since = min(
                (need.since_seconds for need in needs if need.fits and need.fits(contract)),
                default=float("inf"),
            )
            kept = {
                shard.shard_id
                for shard in shards
                if shard.shard_id in named or shard.record.stat().st_mtime > since
            }
            sets.append(
                SetGarbage(
                    contract,
                    directory.name,
                    kept=tuple(shard for shard in shards if shard.shard_id in kept),
                    removed=tuple(shard for shard in shards if shard.shard_id not in kept),
                )
            )
    oldest = now_seconds - training_days * _DAY_SECONDS
    return Garbage(tuple(sets), tuple(leftovers), tuple(_training_garbage(journal.path / "training", oldest)))


def remove_garbage(journal: Journal, garbage: Garbage) -> None:
    """Remove the garbage. A kill in between leaves only garbage behind."""
    for shard in (shard for each in garbage.sets for shard in each.removed):
        for path in shard.files:
            path.unlink(missing_ok=True)
    for path in garbage.leftovers:
        path.unlink(missing_ok=True)
    for path in garbage.training:
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
    for folder in journal.path.glob("contracts/*/"):
        for directory in folder.glob("*/"):
            if not any(directory.iterdir()):
                directory.rmdir()
        if not any(folder.glob("*/")):
            remove_folder(folder)


def _training_garbage(folder: Path, oldest_seconds: float) -> Iterator[Path]:
    """States of unfinished trainings, each with its lock, and results of a sweep's members, a folder each."""
    files: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.glob("*") if path.is_file()):
        files.setdefault(path.stem, []).append(path)
    for paths in files.values():
        if max(path.stat().st_mtime for path in paths) < oldest_seconds:
            yield from paths
    yield from (path for path in sorted(folder.glob("sweeps/*/")) if _changed_seconds(path) < oldest_seconds)


def _shards(directory: Path) -> Iterator[Shard]:
    files: dict[str, list[Path]] = {}
    for path in sorted(directory.iterdir()):
        files.setdefault(path.stem, []).append(path)
    for record in sorted(directory.glob(f"*{RECORD_SUFFIX}")):
        rows = [path for path in files[record.stem] if path != record]
        stats = [path.stat() for path in (record, *rows)]
        yield Shard(
            record=record,
            files=(record, *rows),
            size_bytes=sum(stat.st_size for stat in stats),
            is_shared=any(stat.st_nlink > 1 for stat in stats[1:]),
        )


def _changed_seconds(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
