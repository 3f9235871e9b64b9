"""Timelines: which labels the frames of a clip have, and which the model says, in time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_LABELS = 12  # of a clip whose frames have several labels at once


@dataclass(frozen=True)
class Stretch:
    """Frames in a row with the same label, from start_seconds to end_seconds."""

    start_seconds: float
    end_seconds: float
    label: str


@dataclass(frozen=True)
class Lane:
    """Stretches that do not overlap."""

    name: str  # `truth`, `answer`; of several labels at once the label, for the lane of its truth
    about: str  # what it shows, for people who don't see it
    stretches: tuple[Stretch, ...]
    is_thin: bool = False  # one of the two of a label


@dataclass(frozen=True)
class Timeline:
    """The labels of a clip's frames."""

    start_seconds: float
    end_seconds: float
    lanes: tuple[Lane, ...]
    num_left_out: int = 0  # of several labels at once, those that have no lanes


def timeline(rows: Sequence[Mapping[str, Any]]) -> Timeline:
    """From rows of frames, by time, with one label each: a lane of the truth and one of the answers."""
    starts, ends = _spans(rows)
    lanes = (
        Lane(name, name, _stretches(starts, ends, [row[name] for row in rows]))
        for name in ("truth", "answer")
    )
    return Timeline(starts[0], ends[-1], tuple(lanes))


def timeline_of_labels(rows: Sequence[Mapping[str, Any]], known: Iterable[str]) -> Timeline:
    """From rows of frames, by time, with lists of labels: two lanes a label, those of most frames first.

    `known` are all labels. Those that no frame has, and the model says of none, have no lanes.
    """
    starts, ends = _spans(rows)
    counts = {name: sum((name in row["truth"]) + (name in row["answer"]) for row in rows) for name in known}
    names = sorted(filter(counts.__getitem__, counts), key=lambda name: -counts[name])
    lanes = (
        Lane(
            name if part == "truth" else "",
            f"{name}, {part}",
            _stretches(starts, ends, [name if name in row[part] else None for row in rows]),
            is_thin=True,
        )
        for name in names[:MAX_LABELS]
        for part in ("truth", "answer")
    )
    return Timeline(starts[0], ends[-1], tuple(lanes), max(0, len(names) - MAX_LABELS))


def _spans(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Where each frame begins and ends: it is shown until the next one, as far as frames are dense."""
    times = np.array([row["frame_seconds"] for row in rows])
    gaps = np.diff(times)
    usual = float(np.median(gaps)) if len(gaps) else 1.0
    return times.tolist(), (times + np.append(np.minimum(gaps, 1.5 * usual), usual)).tolist()


def _stretches(
    starts: Sequence[float], ends: Sequence[float], labels: Sequence[str | None]
) -> tuple[Stretch, ...]:
    """Runs of frames with the same label."""
    found: list[Stretch] = []
    for start, end, label in zip(starts, ends, labels, strict=True):
        if label is None:
            continue
        if found and found[-1].label == label and found[-1].end_seconds >= start - 1e-9:
            start = found.pop().start_seconds
        found.append(Stretch(start, end, label))
    return tuple(found)
