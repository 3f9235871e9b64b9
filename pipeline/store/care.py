"""Care of a store: `verify` finds every damaged file, `repair` removes them so that they are made again.

A file that can't be checked, because the file that holds its checksum is damaged, counts as damaged.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from pipeline.contract import FeatureContract
from pipeline.errors import StoreError
from pipeline.files import file_digest, write_atomically
from pipeline.store.containers import CONTAINERS
from pipeline.store.journal import QUARANTINE_SUFFIX, Journal
from pipeline.store.layout import Layout
from pipeline.store.records import RECORD_SUFFIX, Record, check_version, read_record
from pipeline.store.rows import verify_shard
from pipeline.store.tables import FORMAT_VERSION, unseal
from pipeline.store.view import CHECKSUMS_NAME, CHUNKS_NAME, INDEX_NAME, RECORDS_NAME, TIMES_NAME


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written, and whose features it holds."""

    path: Path
    problem: str
    clip_ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        clips = f" (clips {', '.join(self.clip_ids)})" if self.clip_ids else ""
        return f"{self.path} {self.problem}{clips}"


@dataclass(frozen=True)
class Check:
    """A file, and what finds out about it. `run` raises OSError when the file can't be read."""

    path: Path
    run: Callable[[Path], Damage | None]


def verify(checks: Iterable[Check], *, on_bytes: Callable[[int], None] = lambda _: None) -> list[Damage]:
    """Run the checks, each file once under whatever names it has; `on_bytes` is told each file's size."""
    damages = []
    seen = set()
    for check in checks:
        try:
            identity = file_identity(check.path)
            if identity in seen:
                continue
            seen.add(identity)
            damage = check.run(check.path)
            on_bytes(check.path.stat().st_size)
        except FileNotFoundError:
            damage = Damage(check.path, "is missing")
        except OSError as error:
            damage = Damage(check.path, f"can't be read ({error.strerror})")
        if damage:
            damages.append(damage)
    return damages


def file_identity(path: Path) -> tuple[int, int]:
    """The same for all names of one file."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def size_bytes(checks: Iterable[Check]) -> int:
    """What `verify` will read."""
    sizes = {}
    for check in checks:
        if check.path.exists():
            sizes[file_identity(check.path)] = check.path.stat().st_size
    return sum(sizes.values())


def journal_checks(path: Path) -> list[Check]:
    """Every file of the journal at `path` but locks and states of training."""
    checks = [Check(path / "format.json", _check_marker)]
    if (digests := path / "digests.arrow").exists():
        checks.append(Check(digests, _check_sealed))
    checks += [Check(entry, _check_sealed) for entry in path.glob(f"quarantine/*/*{QUARANTINE_SUFFIX}")]
    for folder in sorted(path.glob("contracts/*/")):
        records = sorted(folder.glob(f"*/*{RECORD_SUFFIX}"))
        if records or (folder / "contract.json").exists():
            checks.append(Check(folder / "contract.json", _check_contract))
        for record in records:
            container = CONTAINERS[record.parent.name.partition("-")[0]]
            checks += _shard_checks(record, record.with_suffix(container.suffix))
    return checks


def view_checks(path: Path) -> list[Check]:
    """Every file of the view at `path`, all taps."""
    checks = [check for folder in sorted(path.glob("*/")) for check in _tap_checks(folder)]
    sums = path / CHECKSUMS_NAME
    if not sums.exists():
        return checks
    for line in sums.read_text(errors="replace").splitlines():
        digest, _, name = line.partition("  ")
        checks.append(Check(path / name, _digest_check(digest)))
    return checks


def _tap_checks(folder: Path) -> Iterator[Check]:
    for name in (INDEX_NAME, TIMES_NAME, CHUNKS_NAME):
        yield Check(folder / name, _check_sealed)
    records = folder / RECORDS_NAME
    metadata = _index_metadata(folder / INDEX_NAME)
    if metadata:
        container = CONTAINERS[Layout.from_json(metadata["layout"]).format]
        shard_ids = json.loads(metadata["shards"])
        yield Check(folder / container.master, _digest_check(metadata["master_digest"].hex()))
    else:
        container = next((c for c in CONTAINERS.values() if (folder / c.master).exists()), CONTAINERS["zarr"])
        shard_ids = sorted(path.stem for path in records.glob(f"*{RECORD_SUFFIX}"))
        yield Check(folder / container.master, lambda path: Damage(path, "can't be checked without its index"))
    for number, shard_id in enumerate(shard_ids):
        yield from _shard_checks(records / f"{shard_id}{RECORD_SUFFIX}", folder / container.shard_path(number))


def _index_metadata(path: Path) -> Mapping[str, bytes]:
    """Empty when the index is missing or damaged."""
    try:
        _, metadata = unseal(path.read_bytes(), path=path)
    except (StoreError, OSError):
        return {}
    check_version(int(metadata["format_version"]), path=path)
    return metadata


def _shard_checks(record: Path, shard: Path) -> list[Check]:
    return [Check(record, _check_record), Check(shard, lambda path: _check_shard(path, record))]


def _check_marker(path: Path) -> Damage | None:
    try:
        version = int(json.loads(path.read_bytes())["format_version"])
    except (ValueError, KeyError, TypeError):
        return Damage(path, "is no format marker")
    check_version(version, path=path)
    return None if version > 0 else Damage(path, f"has the unknown version {version}")


def _check_contract(path: Path) -> Damage | None:
    try:
        contract = FeatureContract.model_validate_json(path.read_bytes())
    except ValueError:
        return Damage(path, "is no contract")
    if not contract.digest().startswith(path.parent.name):
        return Damage(path, "is not the contract that its folder is named by")
    return None


def _check_sealed(path: Path) -> Damage | None:
    try:
        unseal(path.read_bytes(), path=path)
    except StoreError:
        return Damage(path, "does not match its checksum")
    return None


def _check_record(path: Path) -> Damage | None:
    damage = _check_sealed(path)
    if damage is None and read_record(path).shard_id != path.stem:
        return Damage(path, "is the record of another shard")
    return damage


def _check_shard(path: Path, record_path: Path) -> Damage | None:
    if not record_path.exists() or _check_record(record_path):
        return Damage(path, "can't be checked without its record")
    record = read_record(record_path)
    chunks = verify_shard(path, record)
    if not chunks:
        return None
    problem = f"(shard {record.shard_id}) is damaged in {len(chunks)} of {len(record.chunks) + 1} places"
    return Damage(path, problem, tuple(_clips_in(record, chunks)))


def _clips_in(record: Record, chunks: list[int]) -> list[str]:
    """The clips with rows in these chunks; in -1, the bytes that are in no chunk, all have a part."""
    size = record.layout.rows_per_chunk
    rows = record.spans["row"].to_numpy()
    ends = rows + record.spans["num_rows"].to_numpy()
    hit = [
        any(number == -1 or (row < (number + 1) * size and end > number * size) for number in chunks)
        for row, end in zip(rows.tolist(), ends.tolist(), strict=True)
    ]
    return sorted({clip_id for clip_id, h in zip(record.spans["clip_id"].to_pylist(), hit, strict=True) if h})


def _digest_check(digest: str) -> Callable[[Path], Damage | None]:
    def check(path: Path) -> Damage | None:
        return None if file_digest(path).hex() == digest else Damage(path, "does not match its checksum")

    return check
