"""How many clips of each split have which number, size or class: the tables of a contact sheet."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.manifest import SPLITS, Clip
from pipeline.report.html import number
from pipeline.report.look.survey import Seen, classes_of

_NUM_BINS = 12
_MAX_ROWS = 500  # of a table

Value = tuple[str, float]  # a split, and a number of one of its clips
Name = tuple[str, str]  # a split, and a name that one of its clips has


@dataclass(frozen=True, slots=True)
class Distribution:
    """A table: for each range or name, how many there are in each split."""

    title: str
    noun: str  # what is counted
    text: str  # a sentence about all
    rows: Mapping[str, Mapping[str, int]]  # counts by split, by name
    is_of_names: bool = False

    @property
    def most(self) -> Mapping[str, int]:
        """The highest count of each split, at least 1."""
        return {split: max([1, *(counts[split] for counts in self.rows.values())]) for split in SPLITS}


def of_clips(clips: Sequence[Clip]) -> list[Distribution]:
    """Those of the targets that a manifest has."""
    classes = [(clip.split, name) for clip in clips for name in classes_of(clip)]
    answers = [(clip.split, f"{each.question} {each.answer}") for clip in clips for each in clip.questions]
    words = [(clip.split, len(text.split())) for clip in clips for text in clip.captions]
    num_values = max((len(clip.values) for clip in clips), default=0)
    found = [
        _of_names("Classes", "clips", classes),
        *(
            _of_numbers(
                "Values" if num_values == 1 else f"Value {place + 1}",
                "",
                [(clip.split, clip.values[place]) for clip in clips if clip.values],
            )
            for place in range(num_values)
        ),
        _of_numbers("Words of a caption", "words", words, noun="captions"),
        _of_names("Questions and their answers", "questions", answers),
    ]
    return [each for each in found if each.rows]


def of_seen(seen: Iterable[Seen]) -> list[Distribution]:
    """Those of durations, numbers of frames, frame rates and sizes of the clips that could be read."""
    read = [(each.clip.split, each, each.info) for each in seen if each.info]

    def values(measure: Callable[[Seen], float | None]) -> list[Value]:
        return [(split, value) for split, each, _ in read if (value := measure(each)) is not None]

    found = [
        _of_numbers("Duration", "s", values(lambda each: each.duration_seconds)),
        _of_numbers("Frames of a clip", "frames", [(split, info.num_frames) for split, _, info in read]),
        _of_numbers("Frame rate", "frames a second", values(lambda each: each.frames_per_second)),
        _of_names(
            "Frame size", "clips", [(split, f"{info.width} × {info.height}") for split, _, info in read]
        ),
    ]
    return [each for each in found if each.rows]


def _of_numbers(title: str, unit: str, values: Sequence[Value], *, noun: str = "clips") -> Distribution:
    """Of 12 ranges of equal width; each single number has a row where there are no more of them."""
    numbers = [round(value, 6) for _, value in values]
    if not numbers:
        return Distribution(title, noun, "", {})
    low, high, median = map(number, (min(numbers), max(numbers), statistics.median(numbers)))
    in_units = f" {unit}" if unit else ""
    text = f"{low} to {high}{in_units}, median {median}." if low != high else f"All {low}{in_units}."
    singles = sorted(set(numbers))
    if len(singles) <= _NUM_BINS:
        names, places = list(map(number, singles)), np.searchsorted(singles, numbers)
    else:
        edges = np.linspace(singles[0], singles[-1], _NUM_BINS + 1).tolist()
        names = [f"{number(start)} to {number(end)}" for start, end in pairwise(edges)]
        places = np.clip(np.searchsorted(edges, numbers, side="right") - 1, 0, _NUM_BINS - 1)
    rows = {name: Counter[str]() for name in names}
    for (split, _), place in zip(values, places.tolist(), strict=True):
        rows[names[place]][split] += 1
    return Distribution(title, noun, text, rows)


def _of_names(title: str, noun: str, names: Sequence[Name]) -> Distribution:
    """A row a name, the most frequent first; at most 500."""
    counts: dict[str, Counter[str]] = {}
    for split, name in names:
        counts.setdefault(name, Counter())[split] += 1
    ranked = sorted(counts, key=lambda name: (-counts[name].total(), name))
    more = f", of which the {_MAX_ROWS} most frequent are shown" if len(ranked) > _MAX_ROWS else ""
    text = f"{len(ranked)} different{more}."
    return Distribution(
        title, noun, text, {name: counts[name] for name in ranked[:_MAX_ROWS]}, is_of_names=True
    )
