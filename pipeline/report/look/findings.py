"""What a look at a corpus finds: what leaks between splits, what is damaged, and what may surprise."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.corpora import components
from pipeline.errors import count_of
from pipeline.manifest import SPLITS, Clip
from pipeline.report.html import number
from pipeline.report.look.alike import alike_pairs
from pipeline.report.look.survey import Seen, classes_of

_FEW_CLIPS = 10  # of a class in train
_FAR = 3  # times the median: an outlier


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that was found: a sentence, and a line for each case."""

    kind: Literal["leak", "damage", "note"]  # a leak makes the metrics of val and test too good
    text: str
    cases: tuple[str, ...] = ()


def group_alike(seen: Sequence[Seen]) -> list[list[Seen]]:
    """Groups of two or more clips that look alike; those in several splits are first."""
    if not seen:
        return []
    pairs = alike_pairs(np.stack([each.look for each in seen])).tolist()
    members: dict[int, set[int]] = defaultdict(set)
    for pair, group in zip(pairs, components(pairs), strict=True):
        members[group].update(pair)
    groups = [[seen[place] for place in sorted(places)] for places in members.values()]
    return sorted(groups, key=lambda group: not is_torn(each.clip for each in group))


def is_torn(clips: Iterable[Clip]) -> bool:
    """Whether the clips are in several splits."""
    return len({clip.split for clip in clips}) > 1


def find(clips: Sequence[Clip], seen: Sequence[Seen], groups: Sequence[Sequence[Seen]]) -> list[Finding]:
    """What is worth a sentence: of all clips of a manifest, those that were opened, and the alike of these.

    Leaks are first, then damage.
    """
    found = [*_leaks(clips, groups), *_damage(seen), *_classes(clips), *_targets(clips), *_odd(seen, groups)]
    if len(seen) < len(clips):
        text = (
            f"{len(seen)} of {len(clips)} clips were opened: nothing is known of the pictures of the others."
        )
        found.append(Finding("note", text))
    return found


def _leaks(clips: Iterable[Clip], groups: Iterable[Sequence[Seen]]) -> Iterator[Finding]:
    users = defaultdict(list)
    for clip in clips:
        for source in clip.sources:
            users[source].append(clip)
    torn = {source: its_clips for source, its_clips in users.items() if is_torn(its_clips)}
    if torn:
        yield Finding(
            "leak",
            f"{_count(torn, 'source')} in several splits: training sees files that val or test measure with.",
            tuple(f"{source}: {_with_splits(its_clips)}" for source, its_clips in torn.items()),
        )
    alike = [[each.clip for each in group] for group in groups]
    alike = [group for group in alike if is_torn(group)]
    if alike:
        yield Finding(
            "leak",
            f"In {count_of(len(alike), 'groups')}, clips of several splits look alike: likely copies or cuts"
            " of a video.",
            tuple(map(_with_splits, alike)),
        )


def _damage(seen: Sequence[Seen]) -> Iterator[Finding]:
    broken = [each for each in seen if each.problem]
    if broken:
        yield Finding(
            "damage",
            f"{len(broken)} of {len(seen)} opened clips can't be read.",
            tuple(f"{each.clip.clip_id}: {each.problem}" for each in broken),
        )


def _classes(clips: Iterable[Clip]) -> Iterator[Finding]:
    counts = {split: Counter[str]() for split in SPLITS}
    for clip in clips:
        counts[clip.split].update(classes_of(clip))
    names = sorted(set().union(*counts.values()))
    for split, means in {
        "train": "a model can't learn them",
        "val": "val does not measure them",
        "test": "test does not measure them",
    }.items():
        if missing := tuple(name for name in names if not counts[split][name]):
            yield Finding("note", f"{_count(missing, 'class')} without a clip in {split}: {means}.", missing)
    few = {name: count for name, count in sorted(counts["train"].items()) if count < _FEW_CLIPS}
    if few:
        yield Finding(
            "note",
            f"{_count(few, 'class')} rare: fewer than {_FEW_CLIPS} clips in train.",
            tuple(f"{name}: {count}" for name, count in few.items()),
        )


def _targets(clips: Sequence[Clip]) -> Iterator[Finding]:
    for target in ("label", "captions", "values", "frame_labels", "questions"):
        without = [clip.clip_id for clip in clips if not getattr(clip, target)]
        if 0 < len(without) < len(clips):
            name = target.replace("_", " ")
            yield Finding("note", f"{len(without)} of {len(clips)} clips have no {name}.", tuple(without))


def _odd(seen: Iterable[Seen], groups: Iterable[Sequence[Seen]]) -> Iterator[Finding]:
    read = [each for each in seen if each.info]
    within = [[each.clip for each in group] for group in groups]
    within = [group for group in within if not is_torn(group)]
    if within:
        yield Finding(
            "note",
            f"In {count_of(len(within), 'groups')}, clips of one split look alike.",
            tuple(map(_with_splits, within)),
        )
    flat = tuple(each.clip.clip_id for each in read if not each.look[0].any())
    if flat:
        yield Finding("note", f"{_count(flat, 'clip')} of one colour, and compared with no other.", flat)
    measures: dict[str, tuple[str, Callable[[Seen], float | None]]] = {
        "duration": ("s", lambda each: each.duration_seconds),
        "frame rate": ("frames/s", lambda each: each.frames_per_second),
        "frame size": ("pixels", lambda each: each.info.height * each.info.width if each.info else None),
    }
    for name, (unit, measure) in measures.items():
        values = {each.clip.clip_id: value for each in read if (value := measure(each))}
        yield from _outliers(name, unit, values)


def _outliers(name: str, unit: str, values: Mapping[str, float]) -> Iterator[Finding]:
    if not values:
        return
    median = statistics.median(values.values())
    far = {clip: value for clip, value in values.items() if not median / _FAR <= value <= median * _FAR}
    if far:
        yield Finding(
            "note",
            f"{_count(far, 'clip')} of unusual {name}: more than {_FAR} times the median, which is"
            f" {number(median)} {unit}, or less than 1/{_FAR} of it.",
            tuple(
                f"{clip}: {number(value)} {unit}"
                for clip, value in sorted(far.items(), key=lambda item: item[1])
            ),
        )


def _with_splits(clips: Iterable[Clip]) -> str:
    return ", ".join(f"{clip.clip_id} ({clip.split})" for clip in clips)


def _count(items: Sized, noun: str) -> str:
    """`1 clip is`, `2 classes are`."""
    if len(items) == 1:
        return f"1 {noun} is"
    return f"{len(items)} {noun}{'es' if noun.endswith('s') else 's'} are"
