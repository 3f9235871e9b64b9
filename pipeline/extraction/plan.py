"""The plan: which clips must be computed, for which taps, and why."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from pipeline.contract import FeatureContract
from pipeline.errors import DecodeError, error_text
from pipeline.extraction.targets import Target
from pipeline.frames import source_files
from pipeline.manifest import Clip
from pipeline.manifest.sources import Fault
from pipeline.settings.extract import Damaged
from pipeline.store import DigestCache, Journal, Quarantined, stored_keys
from pipeline.system.files import combined_digest

_MOST_OTHERS = 8  # contracts that are looked at for a reason


@dataclass(frozen=True)
class PlannedClip:
    """A clip to compute, why, and for which taps."""

    clip: Clip
    key: bytes
    reason: str
    taps: tuple[str, ...]
    keep_damaged: bool = False  # it is known to be damaged, and is used up to the damage


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    keys: Mapping[str, bytes]  # by clip id, of every clip whose sources could be read
    to_extract: tuple[PlannedClip, ...]
    num_unchanged: int
    num_quarantined: int  # in quarantine before this run, for every tap that is missing
    unreadable: Mapping[str, str]  # clip id -> the error that reading its source gave
    num_to_copy: int = 0  # counted only when `copies` are given

    def summary(self) -> str:
        """A line for each reason, e.g. `1 new` and `320 unchanged`."""
        reasons = Counter(clip.reason for clip in self.to_extract)
        parts = [f"{count} {reason}" for reason, count in sorted(reasons.items())]
        parts.append(f"{self.num_unchanged} unchanged")
        if self.num_to_copy:
            parts.append(f"{self.num_to_copy} to copy from another layout or an earlier view")
        if self.num_quarantined:
            parts.append(f"{self.num_quarantined} quarantined before")
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable")
        return "\n".join(f"  {part}" for part in parts)


def make_plan(
    clips: Sequence[Clip],
    *,
    root: Path,
    targets: Sequence[Target],
    journal: Journal,
    digests: DigestCache,
    damaged: Damaged = "drop",
    min_frames: int = 1,
    copies: Mapping[str, AbstractSet[bytes]] | None = None,
    retried: AbstractSet[bytes] = frozenset(),
    faults: Mapping[str, Fault] = MappingProxyType({}),
) -> Plan:
    """Compare the manifest's clips with the journal: which must be computed, and why.

    `copies` has, by tap, the keys of features that exist elsewhere and will be copied. `retried` has the keys
    of clips that were in quarantine until now. `faults` has the sources that can't be read. The caller saves
    `digests`, in which new ones are noted.
    """
    forward_digest = targets[0].contract.forward_digest()
    stored = {t.contract.tap: stored_keys(journal.records(t.contract, t.layout).values()) for t in targets}
    rejected = journal.quarantined(forward_digest)
    unfit = {t.contract.tap: journal.quarantined(t.contract.digest()) for t in targets}
    keys: dict[str, bytes] = {}
    unreadable: dict[str, str] = {}
    missing: dict[bytes, tuple[Clip, tuple[str, ...]]] = {}
    num_unchanged = num_quarantined = num_to_copy = 0
    for clip in clips:
        if fault := next((name for name in clip.sources if name in faults), None):
            unreadable[clip.clip_id] = f"source {faults[fault].sentence(fault)}"
            continue
        try:
            key = clip_key(clip, root=root, digests=digests)
        except OSError as error:
            unreadable[clip.clip_id] = error_text(error)
            continue
        keys[clip.clip_id] = key
        usable = usable_key(key, rejected, damaged=damaged, min_frames=min_frames)
        lacking = [tap for tap, known in stored.items() if (usable or key) not in known]
        taps = [tap for tap in lacking if usable not in unfit[tap]]
        if not lacking:
            num_unchanged += 1
        elif usable is None or not taps:
            num_quarantined += 1
        elif copies and all(usable in copies[tap] for tap in taps):
            num_to_copy += 1
        else:
            missing.setdefault(usable, (clip, tuple(taps)))
    reason_of = _Reasons(journal, targets)
    to_extract = []
    for key, (clip, wanted) in missing.items():
        keep_damaged = key != keys[clip.clip_id]
        if keep_damaged:
            reason = "damaged, kept"
        elif key in retried:
            reason = "quarantined before, tried again"
        else:
            reason = reason_of(clip.clip_id, key, wanted)
        to_extract.append(PlannedClip(clip, key, reason, wanted, keep_damaged=keep_damaged))
    return Plan(keys, tuple(to_extract), num_unchanged, num_quarantined, unreadable, num_to_copy)


def usable_key(
    key: bytes, rejected: Mapping[bytes, Quarantined], *, damaged: Damaged, min_frames: int
) -> bytes | None:
    """The key of the features that are used for a clip; None when the clip is left out.

    The decoded part of a damaged clip has a key of its own: under a clip's own key, everything is whole.
    """
    if key not in rejected:
        return key
    if damaged == "drop" or rejected[key].num_recovered < min_frames:
        return None
    kept = damaged_key(key)
    return None if kept in rejected else kept


def damaged_key(key: bytes) -> bytes:
    """The key of what was decoded of the damaged clip `key`."""
    return combined_digest([key], extra="damaged")


def clip_key(clip: Clip, *, root: Path, digests: DigestCache) -> bytes:
    """16 bytes that change with the content of the clip's sources and with its time range.

    Raises OSError when a source can't be read.
    """
    # A string and one stat a source: a million clips take seconds.
    contents = [digest for source in clip.sources for digest in _contents(f"{root}/{source}", digests)]
    return combined_digest(contents, extra=f"{clip.start_seconds}:{clip.end_seconds}:{clip.image_fps}")


def _contents(source: str, digests: DigestCache) -> list[bytes]:
    """The digest of a file, or those of a folder's images."""
    try:
        return [digests.digest(source)]
    except IsADirectoryError:
        pass
    try:
        return [digests.digest(file) for file in source_files(Path(source))]
    except DecodeError as error:  # the decoder rejects this clip, as long as the folder stays as it is
        return [combined_digest([], extra=str(error))]


def source_paths(clips: Iterable[Clip], *, root: Path) -> Iterator[str]:
    """Every file that `plan` digests."""
    for source in dict.fromkeys(source for clip in clips for source in clip.sources):
        path = f"{root}/{source}"
        if os.path.isdir(path):  # noqa: PTH112 - a million calls
            with contextlib.suppress(DecodeError):  # the decoder rejects this clip
                yield from map(str, source_files(Path(path)))
        else:
            yield path


class _Reasons:
    """Why a clip's features are missing, judged by what the journal has under other keys and contracts.

    A clip in quarantine counts as one that the journal has.
    """

    def __init__(self, journal: Journal, targets: Sequence[Target]) -> None:
        self._journal = journal
        self._targets = targets

    @cached_property
    def _same(self) -> list[dict[str, set[bytes]]]:
        """Of each target, the known keys of each clip id."""
        return [self._known_keys(target.contract) for target in self._targets]

    @cached_property
    def _others(self) -> list[tuple[FeatureContract, set[str]]]:
        """Other contracts, the most recently used first, and the clip ids that each has."""
        digests = {target.contract.digest() for target in self._targets}
        others = [other for other in self._journal.contracts() if other.digest() not in digests]
        return [(other, set(self._known_keys(other))) for other in others[:_MOST_OTHERS]]

    def _known_keys(self, contract: FeatureContract) -> dict[str, set[bytes]]:
        found = self._journal.clip_keys(contract)
        for key, clip in self._journal.quarantined(contract.forward_digest()).items():
            found.setdefault(clip.clip_id, set()).add(key)
        return found

    def __call__(self, clip_id: str, key: bytes, taps: tuple[str, ...]) -> str:
        pairs = zip(self._targets, self._same, strict=True)
        here = [keys for target, keys in pairs if target.contract.tap in taps]
        if any(clip_id in keys for keys in here):
            # Under this key alone: the beginning of a clip that a crash interrupted.
            interrupted = all(keys.get(clip_id, set()) <= {key} for keys in here)
            return "new" if interrupted else "source changed"
        if any(clip_id in keys for keys in self._same):
            return f"tap added ({', '.join(taps)})"
        contract = self._targets[0].contract
        for other, clips in self._others:
            if clip_id in clips:
                fields = {k: v for k, v in other.differences(contract).items() if k != "tap"}
                if not fields:
                    return f"tap added ({', '.join(taps)})"
                return "; ".join(f"{name} changed: {a} -> {b}" for name, (a, b) in fields.items())
        return "new"
