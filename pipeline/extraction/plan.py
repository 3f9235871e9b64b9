"""The plan: which clips must be computed, for which taps and views, and why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

from pipeline.contract import FeatureContract
from pipeline.extraction.targets import Target
from pipeline.manifest import Clip
from pipeline.manifest.recorded import Contents, Sources
from pipeline.settings.extract import Damaged
from pipeline.store import Journal, Quarantined, stored_keys
from pipeline.system.files import combined_digest

_MOST_OTHERS = 8  # contracts that are looked at for a reason


@dataclass(frozen=True)
class PlannedClip:
    """A clip to compute, why, and for which targets."""

    clip: Clip
    key: bytes
    reason: str
    targets: tuple[str, ...]  # their names, such as layer4 or layer4@flip
    keep_damaged: bool = False  # it is known to be damaged, and is used up to the damage


@dataclass(frozen=True)
class Plan:
    """What a run has to do."""

    sources: Sources  # as they were when it was made
    keys: Mapping[str, bytes]  # by clip id, of every clip whose sources' content is known
    to_extract: tuple[PlannedClip, ...]
    out_of_reach: tuple[PlannedClip, ...]  # lack features, too, and their sources can't be read here
    num_unchanged: int
    num_quarantined: int  # in quarantine before this run, for every target that is missing
    unreadable: Mapping[str, str]  # clip id -> why its source can't be read, of clips that lack features
    num_to_copy: int = 0  # counted only when `copies` are given

    @property
    def lacking(self) -> tuple[PlannedClip, ...]:
        """All clips that lack features."""
        return (*self.to_extract, *self.out_of_reach)

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
    sources: Sources,
    targets: Sequence[Target],
    journal: Journal,
    damaged: Damaged = "drop",
    min_frames: int = 1,
    copies: Mapping[str, AbstractSet[bytes]] | None = None,
    retried: AbstractSet[bytes] = frozenset(),
) -> Plan:
    """Compare the manifest's clips with the journal: which must be computed, and why.

    `sources` has the clips' sources. `copies` has, by target, the keys of features that exist elsewhere and
    will be copied. `retried` has the keys of clips that were in quarantine until now.
    """
    forward_digest = targets[0].contract.forward_digest()
    stored = {t.contract.name: stored_keys(journal.records(t.contract, t.layout).values()) for t in targets}
    rejected = journal.quarantined(forward_digest)
    unfit = {t.contract.name: journal.quarantined(t.contract.digest()) for t in targets}
    keys: dict[str, bytes] = {}
    unreadable: dict[str, str] = {}
    missing: dict[bytes, tuple[Clip, tuple[str, ...]]] = {}
    num_unchanged = num_quarantined = num_to_copy = 0
    for clip in clips:
        try:
            key = clip_key(clip, sources.contents)
        except KeyError as source:
            unreadable[clip.clip_id] = sources.unread[source.args[0]]
            continue
        keys[clip.clip_id] = key
        usable = usable_key(key, rejected, damaged=damaged, min_frames=min_frames)
        lacking = [name for name, known in stored.items() if (usable or key) not in known]
        names = [name for name in lacking if usable not in unfit[name]]
        if not lacking:
            num_unchanged += 1
        elif usable is None or not names:
            num_quarantined += 1
        elif copies and all(usable in copies[name] for name in names):
            num_to_copy += 1
        elif usable not in missing or _why_unread(missing[usable][0], sources):
            missing[usable] = (clip, tuple(names))  # of clips with equal content, one that can be read
    reason_of = _Reasons(journal, targets)
    to_extract, out_of_reach = [], []
    for key, (clip, wanted) in missing.items():
        keep_damaged = key != keys[clip.clip_id]
        if keep_damaged:
            reason = "damaged, kept"
        elif key in retried:
            reason = "quarantined before, tried again"
        else:
            reason = reason_of(clip.clip_id, key, wanted)
        planned = PlannedClip(clip, key, reason, wanted, keep_damaged=keep_damaged)
        if why := _why_unread(clip, sources):
            unreadable[clip.clip_id] = why
            out_of_reach.append(planned)
        else:
            to_extract.append(planned)
    return Plan(
        sources=sources,
        keys=keys,
        to_extract=tuple(to_extract),
        out_of_reach=tuple(out_of_reach),
        num_unchanged=num_unchanged,
        num_quarantined=num_quarantined,
        unreadable=unreadable,
        num_to_copy=num_to_copy,
    )


def _why_unread(clip: Clip, sources: Sources) -> str | None:
    return next((sources.unread[name] for name in clip.sources if name in sources.unread), None)


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


def clip_key(clip: Clip, contents: Contents) -> bytes:
    """16 bytes that change with the content of the clip's sources and with its time range.

    Raises KeyError for a source of which `contents` has nothing.
    """
    digests = [contents[source] for source in clip.sources]
    return combined_digest(digests, extra=f"{clip.start_seconds}:{clip.end_seconds}:{clip.image_fps}")


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

    def __call__(self, clip_id: str, key: bytes, names: tuple[str, ...]) -> str:
        pairs = zip(self._targets, self._same, strict=True)
        here = [keys for target, keys in pairs if target.contract.name in names]
        if any(clip_id in keys for keys in here):
            # Under this key alone: the beginning of a clip that a crash interrupted.
            interrupted = all(keys.get(clip_id, set()) <= {key} for keys in here)
            return "new" if interrupted else "source changed"
        if any(clip_id in keys for keys in self._same):
            return _added(names)
        contract = self._targets[0].contract
        for other, clips in self._others:
            if clip_id in clips:
                fields = {k: v for k, v in other.differences(contract).items() if k not in ("tap", "view")}
                if not fields:
                    return _added(names)
                return "; ".join(f"{name} changed: {a} -> {b}" for name, (a, b) in fields.items())
        return "new"


def _added(names: Sequence[str]) -> str:
    kind = "view" if all("@" in name for name in names) else "tap"
    return f"{kind} added ({', '.join(names)})"
