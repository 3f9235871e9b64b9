"""Care of a store: `verify` finds the damaged files, `repair` removes them, so that they are made again.

A file whose checksum is in a damaged file can't be checked, and counts as damaged.
"""

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.contract import FeatureContract
from pipeline.errors import DamagedError, StoreError
from pipeline.store.format.containers import CONTAINERS
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import RECORD_SUFFIX, Record, check_version, read_record
from pipeline.store.format.rows import verify_shard
from pipeline.store.format.tables import unseal
from pipeline.store.journal import QUARANTINE_SUFFIX, Journal
from pipeline.store.view import CHUNKS_NAME, CLIPS_NAME, FILES_NAME, INDEX_NAME, RECORDS_NAME, TIMES_NAME
from pipeline.system.files import file_digest, write_atomically


@dataclass(frozen=True)
class Damage:
    """A damaged file: what is wrong with it, and which clips it concerns."""

    path: Path
    problem: str
    clip_ids: tuple[str, ...] = ()
    may_be_good: bool = False  # it could not be read: no rights, too many open files, ...

    def __str__(self) -> str:
        clips = f" (clips {', '.join(self.clip_ids)})" if self.clip_ids else ""
        return f"{self.path} {self.problem}{clips}"


@dataclass(frozen=True)
class Check:
    """A file to verify, and how. `run` returns its damage, or raises OSError when it can't be read."""

    path: Path
    run: Callable[[Path], Damage | None]


def verify(checks: Iterable[Check], *, on_bytes: Callable[[int], object] = lambda _: None) -> list[Damage]:
    """Run the checks, and return the damages. `on_bytes` is told the size of each file that was read.

    A file with several names (hardlinks) is read once.
    """
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
            problem = f"can't be read ({error.strerror})"
            damage = Damage(check.path, problem, may_be_good=error.errno != errno.EIO)
        if damage:
            damages.append(damage)
    return damages


def file_identity(path: Path) -> tuple[int, int]:
    """(device, inode) of a file: the same for all its names."""
    stat = path.stat()
    return stat.st_dev, stat.st_ino


def size_bytes(checks: Iterable[Check]) -> int:
    """How many bytes `verify` will read."""
    sizes = {}
    for check in checks:
        if check.path.exists():
            sizes[file_identity(check.path)] = check.path.stat().st_size
    return sum(sizes.values())


def journal_checks(path: Path) -> list[Check]:
    """Checks of every file of the journal at `path`, but for locks and states of training."""
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
    """Checks of every file of the view at `path`, of all taps; none where there is no view."""
    if not path.exists():
        return []
    checks = [check for folder in sorted(path.glob("*/")) for check in _tap_checks(folder)]
    checks.append(Check(path / FILES_NAME, _check_sealed))
    digests = _file_digests(path / FILES_NAME)
    files = [*path.glob("*.csv"), *path.glob(f"*/{CLIPS_NAME}")]
    for file in sorted({*digests, *(str(file.relative_to(path)) for file in files)}):
        checks.append(Check(path / file, _digest_check(digests.get(file))))
    return checks


def _tap_checks(folder: Path) -> Iterator[Check]:
    for name in (INDEX_NAME, TIMES_NAME, CHUNKS_NAME):
        yield Check(folder / name, _check_sealed)
    records = folder / RECORDS_NAME
    if metadata := _metadata(folder / INDEX_NAME):
        check_version(int(metadata["format_version"]), path=folder / INDEX_NAME)
        container = CONTAINERS[Layout.from_json(metadata["layout"]).format]
        shard_ids = json.loads(metadata["shards"])
    else:
        container = next((c for c in CONTAINERS.values() if (folder / c.master).exists()), CONTAINERS["zarr"])
        shard_ids = sorted(path.stem for path in records.glob(f"*{RECORD_SUFFIX}"))
    yield Check(folder / container.master, _digest_check(metadata.get("master_digest")))
    for number, shard_id in enumerate(shard_ids):
        yield from _shard_checks(
            records / f"{shard_id}{RECORD_SUFFIX}", folder / container.shard_path(number)
        )


def _metadata(path: Path) -> Mapping[str, bytes]:
    """Of a sealed file; empty when it is missing or damaged."""
    try:
        return unseal(path.read_bytes(), path=path)[1]
    except (StoreError, OSError):
        return {}


def _file_digests(path: Path) -> dict[str, bytes]:
    """By path inside the view; empty when the table is missing or damaged."""
    try:
        table, _ = unseal(path.read_bytes(), path=path)
    except (StoreError, OSError):
        return {}
    return dict(zip(table["name"].to_pylist(), table["digest"].to_pylist(), strict=True))


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
    except DamagedError:
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
    """The clips with rows in these chunks. -1, the bytes outside of chunks, concerns all clips."""
    size = record.layout.rows_per_chunk
    rows = record.spans["row"].to_numpy()
    ends = rows + record.spans["num_rows"].to_numpy()
    hit = [
        any(number == -1 or (row < (number + 1) * size and end > number * size) for number in chunks)
        for row, end in zip(rows.tolist(), ends.tolist(), strict=True)
    ]
    return sorted({clip_id for clip_id, h in zip(record.spans["clip_id"].to_pylist(), hit, strict=True) if h})


def _digest_check(digest: bytes | None) -> Callable[[Path], Damage | None]:
    """A check by digest; None when the file that holds the digest is damaged."""

    def check(path: Path) -> Damage | None:
        if digest is None:
            return Damage(path, "can't be checked: the file with its checksum is damaged")
        return None if file_digest(path) == digest else Damage(path, "does not match its checksum")

    return check


def repair(
    journal: Path,
    *,
    view: Path,
    find_copies: Callable[[list[Path]], list[Path]],
    on_wait: Callable[[str], None],
    on_bytes: Callable[[int], object] = lambda _: None,
) -> list[Damage]:
    """Remove the damaged files, so that the next extraction makes them again; returns the damages.

    A shard may have further names or copies outside of journal and view: `find_copies` is given every
    damaged file and returns those others. They are removed first. The journal's record, by which `verify`
    knows of the damage, is removed last: a kill in between leaves work for the next repair.

    Raises StoreError, and removes nothing, when a file can't be read: it may be good.
    """
    marker = journal / "format.json"
    if any(not damage.may_be_good for damage in verify([Check(marker, _check_marker)])):
        marker.unlink(missing_ok=True)  # Journal writes it
    with Journal(journal).exclusive(on_wait=on_wait):
        damages = verify([*journal_checks(journal), *view_checks(view)], on_bytes=on_bytes)
        if unseen := next((damage for damage in damages if damage.may_be_good), None):
            raise StoreError(
                f"{unseen}. It may be good, so nothing was removed. Have its owner give you access, or run"
                " this as the owner."
            )
        bad = {damage.path for damage in damages}
        identities = {file_identity(path) for path in bad if path.exists()}
        in_view = [
            path
            for path in view.rglob("*")
            if path in bad or (path.is_file() and file_identity(path) in identities)
        ]
        for path in [*find_copies([*bad, *in_view]), *in_view]:
            path.unlink(missing_ok=True)
        for path in bad:
            if path.is_relative_to(journal):
                _remove_from_journal(path)
    return damages


def _remove_from_journal(path: Path) -> None:
    if path.name == "contract.json":
        for record in path.parent.glob(f"*/*{RECORD_SUFFIX}"):
            if not _check_sealed(record):
                data = read_record(record).contract.model_dump_json(indent=1).encode()
                write_atomically(path, data)
                return
    path.with_suffix(RECORD_SUFFIX).unlink(missing_ok=True)  # a shard's, before the shard
    path.unlink(missing_ok=True)
