"""The journal: every shard ever committed, by contract and layout. Private to framecache.

<journal>/
  format.json
  digests.arrow                          content digests of source files
  locks/<forward digest>.lock            one extraction per forward contract at a time
  locks/<forward digest>.writers.lock    shared by its Dask workers
  quarantine/<forward digest>/<key>.clip  clips whose bytes the decoder rejected
  quarantine/<contract digest>/<key>.clip clips whose features can't be stored, of this tap and dtype
  contracts/<contract digest>/
    contract.json
    <layout>/<shard id>.shard            rows
    <layout>/<shard id>.record           written last: makes the shard exist
"""

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.contract import FeatureContract
from pipeline.errors import DamagedError
from pipeline.store.digests import DigestCache
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import RECORD_SUFFIX, Record, check_version, parse_record, read_record
from pipeline.store.format.tables import FORMAT_VERSION, seal, unseal
from pipeline.system.files import atomic_path, file_lock, link, make_folder, write_atomically

log = logging.getLogger(__name__)

# Enough of a digest for a folder's name; the whole one is in contract.json.
_NAME_LENGTH = 16

QUARANTINE_SUFFIX = ".clip"


@dataclass(frozen=True)
class Quarantined:
    """A clip that was set aside: the decoder rejects it or crashes, or its features can't be stored."""

    clip_id: str
    source: str
    reason: str
    num_recovered: int  # frames that could be decoded before it failed


class Journal:
    """The journal in the folder `path`.

    Raises DamagedError, or StoreError for a journal of a newer version.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        """Open the journal. A missing one is created, or with `create=False` read as an empty one."""
        self.path = path
        marker = path / "format.json"
        if not marker.exists():
            if not create:
                return
            make_folder(path)
            write_atomically(marker, json.dumps({"format_version": FORMAT_VERSION}).encode())
        try:
            version = int(json.loads(marker.read_bytes())["format_version"])
        except (ValueError, KeyError, TypeError):
            raise DamagedError(f"{marker} is damaged.") from None
        check_version(version, path=marker)

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be added: then its features can be published, and no lock is needed."""
        return not os.access(self.path, os.W_OK)

    def digest_cache(self) -> DigestCache:
        """The digests of source files that this journal keeps."""
        return DigestCache(self.path / "digests.arrow")

    def directory(self, contract: FeatureContract, layout: Layout) -> Path:
        """The folder with the shards of this contract and layout, created if it is missing."""
        folder = self._contract_folder(contract)
        if not (folder / "contract.json").exists():
            write_atomically(folder / "contract.json", contract.model_dump_json(indent=1).encode())
        directory = folder / layout.name
        make_folder(directory)
        return directory

    def records(self, contract: FeatureContract, layout: Layout) -> dict[str, Record]:
        """The records of all committed shards of this contract and layout, by shard id."""
        directory = self._contract_folder(contract) / layout.name
        return {path.stem: read_record(path) for path in sorted(directory.glob(f"*{RECORD_SUFFIX}"))}

    def layouts(self, contract: FeatureContract) -> list[Layout]:
        """Every layout in which this contract has shards."""
        folder = self._contract_folder(contract)
        records = [next(directory.glob(f"*{RECORD_SUFFIX}"), None) for directory in sorted(folder.glob("*/"))]
        return [read_record(path).layout for path in records if path]

    def contracts(self) -> list[FeatureContract]:
        """Every contract with features here, the most recently used first. Raises DamagedError."""
        paths = list((self.path / "contracts").glob("*/contract.json"))
        paths.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
        return [read_contract(path) for path in paths]

    def touch(self, contract: FeatureContract) -> None:
        """Note that a contract was used now, if the journal may be written."""
        if not self.is_read_only:
            os.utime(self._contract_folder(contract) / "contract.json")

    def clip_keys(self, contract: FeatureContract) -> dict[str, set[bytes]]:
        """The keys under which each clip id was ever stored for this contract, in any layout."""
        keys: dict[str, set[bytes]] = {}
        for path in self._contract_folder(contract).glob(f"*/*{RECORD_SUFFIX}"):
            spans = read_record(path).spans
            for clip_id, key in zip(spans["clip_id"].to_pylist(), spans["clip_key"].to_pylist(), strict=True):
                keys.setdefault(clip_id, set()).add(key)
        return keys

    @contextlib.contextmanager
    def lock(self, forward_digest: str, *, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock of a forward contract, and keep `exclusive` out.

        `on_wait` is told who holds it when the call has to wait. A read-only journal is not locked.
        """
        if self.is_read_only:
            yield
            return
        locks = self.path / "locks"
        with (
            file_lock(locks / "journal.lock", on_wait=on_wait, shared=True),
            file_lock(locks / f"{forward_digest[:_NAME_LENGTH]}.lock", on_wait=on_wait),
        ):
            yield

    @contextlib.contextmanager
    def writing(self, forward_digest: str) -> Iterator[None]:
        """Allow this process to write shards for the process that holds the lock of a forward contract.

        Several processes may write at once. One that outlives the lock's holder keeps `sweep` and
        `exclusive` out.
        """
        locks = self.path / "locks"
        with (
            file_lock(locks / "journal.lock", on_wait=_say_waiting, shared=True),
            file_lock(self._writers_lock(forward_digest), on_wait=_say_waiting, shared=True),
        ):
            yield

    def exclusive(self, *, on_wait: Callable[[str], None]) -> contextlib.AbstractContextManager[None]:
        """Hold the whole journal, so that files can be removed: no extraction runs meanwhile."""
        return file_lock(self.path / "locks/journal.lock", on_wait=on_wait)

    def sweep(self, contract: FeatureContract, layout: Layout) -> None:
        """Remove what a killed extraction left behind: unfinished files, and shards without a record.

        The caller holds the lock. Waits for writers that have outlived an earlier holder of it.
        """
        if self.is_read_only:
            return
        forward_digest = contract.forward_digest()
        directory = self.directory(contract, layout)
        with file_lock(self._writers_lock(forward_digest), on_wait=_say_waiting):
            records = {path.stem for path in directory.glob(f"*{RECORD_SUFFIX}")}
            for path in directory.iterdir():
                if path.stem not in records:
                    path.unlink()
            quarantines = map(self._quarantine_folder, (forward_digest, contract.digest()))
            for folder in (directory.parent, *quarantines):
                for path in folder.glob(".*.partial-*"):
                    path.unlink()

    def quarantine(self, digest: str, key: bytes, clip: Quarantined) -> None:
        """Set a clip aside for the forward contract, or the contract, with this digest."""
        folder = self._quarantine_folder(digest)
        table = pa.Table.from_pylist([clip.__dict__])
        write_atomically(folder / f"{key.hex()}{QUARANTINE_SUFFIX}", seal(table, {}))

    def quarantined(self, digest: str) -> dict[bytes, Quarantined]:
        """The clips that were set aside for this digest, by key. Warns of damaged entries and skips them."""
        folder = self._quarantine_folder(digest)
        found = {}
        for path in folder.glob(f"*{QUARANTINE_SUFFIX}"):
            try:
                table, _ = unseal(path.read_bytes(), path=path)
            except DamagedError as error:
                log.warning("%s", error)
                continue
            found[bytes.fromhex(path.stem)] = Quarantined(**table.to_pylist()[0])
        return found

    def forgive(self, digest: str, keys: Iterable[bytes]) -> set[bytes]:
        """Forget that these clips were set aside for this digest. Returns the keys of those that were."""
        folder = self._quarantine_folder(digest)
        paths = {key: folder / f"{key.hex()}{QUARANTINE_SUFFIX}" for key in keys}
        present = {key for key, path in paths.items() if path.exists()}
        for key in present:
            paths[key].unlink()
        return present

    def adopt(self, record_data: bytes, shard: Path, *, origin: str) -> bool:
        """Take over a shard's file from elsewhere, by link or copy, then write its record.

        `record_data` is the content of the record's file, which messages call `origin`. Returns False when
        the shard is here already. Raises DamagedError for a damaged record.
        """
        record = parse_record(record_data, path=Path(origin))
        directory = self.directory(record.contract, record.layout)
        if (directory / record.record_name).exists():
            return False
        with atomic_path(directory / record.shard_name, read_only=True) as partial:
            link(shard, partial, may_symlink=False)  # what is elsewhere may go
        write_atomically(directory / record.record_name, record_data, read_only=True)
        return True

    def _writers_lock(self, forward_digest: str) -> Path:
        return self.path / "locks" / f"{forward_digest[:_NAME_LENGTH]}.writers.lock"

    def _quarantine_folder(self, digest: str) -> Path:
        return self.path / "quarantine" / digest[:_NAME_LENGTH]

    def _contract_folder(self, contract: FeatureContract) -> Path:
        return self.path / "contracts" / contract.digest()[:_NAME_LENGTH]


def _say_waiting(holder: str) -> None:
    log.warning("Waiting for a writer of this journal: %s.", holder)


def read_contract(path: Path) -> FeatureContract:
    """The contract in the file contract.json of a contract's folder. Raises DamagedError."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        contract = FeatureContract.model_validate_json(path.read_bytes())
        if contract.digest().startswith(path.parent.name):
            return contract
    raise DamagedError(f"{path} is damaged.")
