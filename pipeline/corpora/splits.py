"""Groups and splits. A split depends on names and a seed alone: a new class or group moves no other one."""

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from pipeline.errors import ManifestError, few, listed
from pipeline.manifest import Clip

log = logging.getLogger(__name__)


def group_by_pattern(clips: Sequence[Clip], pattern: re.Pattern[str]) -> list[Clip]:
    """The clips, grouped by what `pattern` finds in the path of the source: its first group or whole match.

    Raises ManifestError naming the clips whose path it does not match.
    """
    matches = [pattern.search(clip.sources[0]) for clip in clips]
    if strays := [clip.sources[0] for clip, match in zip(clips, matches, strict=True) if not _name(match)]:
        raise ManifestError(
            f"The pattern {pattern.pattern!r} gives no group for {len(strays)} of {len(clips)} clips:"
            f" {few(strays)}. It is searched in the path below the corpus's folder."
        )
    return [replace(clip, group=_name(match)) for clip, match in zip(clips, matches, strict=True)]


def _name(match: re.Match[str] | None) -> str | None:
    return (match[1] if match.re.groups else match[0]) if match else None


def components(items: Sequence[Iterable[Hashable]]) -> list[int]:
    """For each item the number of its component: items with a common member have the same number."""
    parents: dict[Hashable, Hashable] = {}

    def root(member: Hashable) -> Hashable:
        while parents.setdefault(member, member) != member:
            parents[member] = parents[parents[member]]
            member = parents[member]
        return member

    first = []
    for item in items:
        leader, *others = item
        for other in others:
            parents[root(other)] = root(leader)
        first.append(leader)
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(root(leader), len(numbers)) for leader in first]


def group_by_source(clips: Sequence[Clip]) -> list[Clip]:
    """The clips, with one group for all clips of a file: the group that one of them has, or the file's name.

    Raises ManifestError naming the files whose clips have several groups.
    """
    members: dict[int, list[Clip]] = defaultdict(list)
    numbers = components(
        [[*clip.sources, *([("group", clip.group)] if clip.group else [])] for clip in clips]
    )
    for clip, number in zip(clips, numbers, strict=True):
        members[number].append(clip)
    groups: dict[int, str | None] = {}
    problems = []
    for number, alike in members.items():
        named = sorted({clip.group for clip in alike if clip.group})
        if len(named) > 1:
            problems.append(f"{few(sorted({clip.sources[0] for clip in alike}))}: {few(named)}")
        shared = alike[0].sources[0] if len(alike) > 1 else None
        groups[number] = named[0] if named else shared
    if problems:
        raise ManifestError(f"Clips of one file are one group, and these have several:\n{listed(problems)}")
    return [replace(clip, group=groups[number]) for clip, number in zip(clips, numbers, strict=True)]


def split_classes(clips: Sequence[Clip], *, shares: Sequence[float], seed: int) -> list[Clip]:
    """The clips, all with a split: whole groups are split class by class, by shares of train, val and test.

    A class of three or more groups (or clips without a group) is in each split. Clips that have a split keep
    it, and the rest of their group joins them. Classes that share a group or a clip are split together.
    """
    units = [clip.group or clip.sources[0] for clip in clips]
    strata = defaultdict(list)
    numbers = components(
        [[("unit", unit), *(clip.labels or [None])] for unit, clip in zip(units, clips, strict=True)]
    )
    for number, unit, clip in zip(numbers, units, clips, strict=True):
        strata[number].append((unit, clip))
    splits: dict[str, str] = {}
    for members in strata.values():
        splits |= _split_units(members, shares=shares, seed=seed)
    return [replace(clip, split=clip.split or splits[unit]) for unit, clip in zip(units, clips, strict=True)]


def _split_units(
    members: Sequence[tuple[str, Clip]], *, shares: Sequence[float], seed: int
) -> dict[str, str]:
    """{unit: split}. A unit goes to val if more than half of it fits there, else to test, else to train."""
    sizes = Counter(unit for unit, _ in members)
    splits = {unit: clip.split for unit, clip in members if clip.split}
    filled = Counter(dict.fromkeys(("train", "val", "test"), 0))
    for unit, split in splits.items():
        filled[split] += sizes[unit]
    wanted = {
        split: max(round(len(members) * share), int(len(sizes) >= least))
        for split, share, least in (("val", shares[1], 3), ("test", shares[2], 2))
    }
    free = shuffled((unit for unit in sizes if unit not in splits), seed=seed)
    for unit in free:
        fits = (split for split in wanted if filled[split] + sizes[unit] / 2 <= wanted[split])
        splits[unit] = next(fits, "train")
        filled[splits[unit]] += sizes[unit]
    for split in wanted:  # where every unit is large, the smallest goes to an empty split
        spare = [unit for unit in free if splits[unit] == "train"]
        num_train = sum(there == "train" for there in splits.values())
        if wanted[split] and not filled[split] and spare and num_train > 1:
            smallest = min(spare, key=lambda unit: sizes[unit])
            splits[smallest] = split
            filled[split] += sizes[smallest]
    return splits


def carve_val(clips: Sequence[Clip], *, share: float, seed: int, by_class: bool = True) -> list[Clip]:
    """The clips, with whole groups moved from train to val: `share` of each class's groups.

    A class of two or more groups gives at least one. Without `by_class` all clips are one class.
    """
    groups = defaultdict(set)
    for clip in clips:
        if clip.split == "train":
            groups[clip.label if by_class else None].add(clip.group or clip.clip_id)
    chosen: set[str] = set()
    for names in groups.values():
        num_val = max(round(len(names) * share), int(len(names) >= 2))
        chosen.update(shuffled(names, seed=seed)[:num_val])
    return [
        replace(clip, split="val")
        if clip.split == "train" and (clip.group or clip.clip_id) in chosen
        else clip
        for clip in clips
    ]


def carve_missing_val(clips: Sequence[Clip], *, share: float, seed: int) -> list[Clip]:
    """The clips; if none is in test, val becomes test, and val is taken out of train as in `carve_val`."""
    if not clips or any(clip.split == "test" for clip in clips):
        return list(clips)
    log.info("There is no test split: val becomes test, and val is taken out of train.")
    clips = [replace(clip, split="test") if clip.split == "val" else clip for clip in clips]
    return carve_val(clips, share=share, seed=seed)


def free_torn_groups(clips: Sequence[Clip]) -> list[Clip]:
    """The clips; those of a group that official lists have in several splits lose it, with a warning."""
    splits = defaultdict(set)
    for clip in clips:
        splits[clip.group].add(clip.split)
    torn = {group for group, there in splits.items() if group and len(there) > 1}
    if torn:
        log.warning(
            "%d groups are in more than one split of the lists and stay there: %s.", len(torn), few(torn)
        )
    return [replace(clip, group=None) if clip.group in torn else clip for clip in clips]


def shuffled(names: Iterable[str], *, seed: int) -> list[str]:
    """The names in an order that depends on the seed and the names alone."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
