"""Splits that depend on names and a seed alone: adding a class or a group moves no other."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from pipeline.manifest import Clip


def split_classes(clips: Sequence[Clip], *, shares: Sequence[float], seed: int) -> list[Clip]:
    """Clips split class by class by shares of train, val, test; from three on, each split gets one."""
    classes = defaultdict(list)
    for clip in clips:
        classes[clip.label].append(clip)
    splits = {}
    for members in classes.values():
        sources = _shuffled((clip.sources[0] for clip in members), seed=seed)
        num_val, num_test = (
            max(round(len(sources) * share), int(len(sources) >= least))
            for share, least in zip(shares[1:], (3, 2), strict=True)
        )
        for position, source in enumerate(sources):
            split = "val" if position < num_val else "test" if position < num_val + num_test else "train"
            splits[source] = split
    return [replace(clip, split=splits[clip.sources[0]]) for clip in clips]


def carve_val(clips: Sequence[Clip], *, share: float, seed: int) -> list[Clip]:
    """Clips of which whole groups of train became val: `share` of each class's groups, of two or more one."""
    groups = defaultdict(set)
    for clip in clips:
        if clip.split == "train":
            groups[clip.label].add(clip.group or clip.clip_id)
    chosen: set[str] = set()
    for names in groups.values():
        num_val = max(round(len(names) * share), int(len(names) >= 2))
        chosen.update(_shuffled(names, seed=seed)[:num_val])
    return [
        replace(clip, split="val")
        if clip.split == "train" and (clip.group or clip.clip_id) in chosen
        else clip
        for clip in clips
    ]


def _shuffled(names: Iterable[str], *, seed: int) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
