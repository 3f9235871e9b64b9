"""The plan: which clips must be computed, and why."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.extract.config import Target
from pipeline.files import combined_digest
from pipeline.frames import source_files
from pipeline.manifest import Clip
from pipeline.store import DigestCache, Journal, stored_keys


@dataclass(frozen=True)
class PlannedClip:
    """A clip to compute, why, and for which taps."""

    clip: Clip
    key: bytes
    reason: str
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a run has to do. `keys` has every clip that could be read, by clip id."""

    keys: Mapping[str, bytes]
    to_extract: tuple[PlannedClip, ...]
    num_unchanged: int
    num_quarantined: int  # known from before
    unreadable: Mapping[str, str]  # clip id -> the error that reading its source gave

    def summary(self) -> str:
        """E.g. `1 new, 320 unchanged`."""
        reasons = Counter(clip.reason for clip in self.to_extract)
        parts = [f"{count} {reason}" for reason, count in sorted(reasons.items())]
        parts.append(f"{self.num_unchanged} unchanged")
        if self.num_quarantined:
            parts.append(f"{self.num_quarantined} quarantined before")
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable")
        return ", ".join(parts)


def plan(
    clips: Sequence[Clip], *, root: Path, targets: Sequence[Target], journal: Journal, digests: DigestCache
) -> Plan:
    """Compare the manifest's clips with the journal: what must be computed, and why."""
    forward_digest = targets[0].contract.forward_digest()
    stored = {t.contract.tap: stored_keys(journal.records(t.contract, t.layout).values()) for t in targets}
    rejected = journal.quarantined(forward_digest)
    keys: dict[str, bytes] = {}
    unreadable: dict[str, str] = {}
    missing: dict[bytes, tuple[Clip, tuple[str, ...]]] = {}
    num_unchanged = num_quarantined = 0
    for clip in clips:
        try:
            key = clip_key(clip, root=root, digests=digests)
        except OSError as error:
            unreadable[clip.clip_id] = str(error)
            continue
        keys[clip.clip_id] = key
        taps = [tap for tap, known in stored.items() if key not in known]
        if not taps:
            num_unchanged += 1
        elif key in rejected:
            num_quarantined += 1
        else:
            missing.setdefault(key, (clip, tuple(taps)))
    digests.save()
    reason = _reasons(journal, targets) if missing else None
    to_extract = tuple(
        PlannedClip(clip, key, reason(clip.clip_id, taps) if reason else "new", taps)
        for key, (clip, taps) in missing.items()
    )
    return Plan(keys, to_extract, num_unchanged, num_quarantined, unreadable)


def clip_key(clip: Clip, *, root: Path, digests: DigestCache) -> bytes:
    """16 bytes that change when the clip's source content or time range does.

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
        return [digests.digest(file) for file in source_files(Path(source))]


def _reasons(journal: Journal, targets: Sequence[Target]) -> Callable[[str, tuple[str, ...]], str]:
    """Why a clip's features are missing, judged by what the journal has under other keys and contracts."""
    same = [journal.clip_keys(target.contract) for target in targets]
    contracts = journal.contracts()
    known_digests = {target.contract.digest() for target in targets}
    others = [other for other in contracts if other.digest() not in known_digests][:8]
    other_clips = [set(journal.clip_keys(other)) for other in others]

    def reason(clip_id: str, taps: tuple[str, ...]) -> str:
        if any(clip_id in keys for keys in same):
            here = [keys for target, keys in zip(targets, same, strict=True) if target.contract.tap in taps]
            if any(clip_id in keys for keys in here):
                return "source changed"
            return f"tap added ({', '.join(taps)})"
        contract = targets[0].contract
        for other, clips in zip(others, other_clips, strict=True):
            if clip_id in clips:
                fields = {k: v for k, v in other.differences(contract).items() if k != "tap"}
                if not fields:
                    return f"tap added ({', '.join(taps)})"
                return "; ".join(f"{name} changed: {a} -> {b}" for name, (a, b) in fields.items())
        return "new"

    return reason
