"""Segments: metrics of temporal segmentation, of runs of frames that have the same label.

They are those of Lea et al. 2017 (arXiv 1611.05267, section 4.1), as shares from 0 to 1. F1 counts segments
over all clips, as the code of Farha and Gall 2019 (arXiv 1903.01945) does; Lea's code averages it over clips.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.learn.metrics.intervals import Measure
from pipeline.learn.metrics.numbers import UNLABELLED

OVERLAPS = {"f1_10": 0.10, "f1_25": 0.25, "f1_50": 0.50}  # the least IoU of a segment that is found


@dataclass(frozen=True)
class _Segments:
    """The S segments of clips, in order; none goes beyond its clip."""

    begins: np.ndarray  # (M,) of each frame, whether it is the first of a segment
    numbers: np.ndarray  # (M,) of each frame, the number of its segment
    labels: np.ndarray  # (S,)
    clips: np.ndarray  # (S,)
    lengths: np.ndarray  # (S,) in frames
    counted: np.ndarray  # (S,) whether it is no background

    @classmethod
    def of_frames(cls, labels: np.ndarray, clips: np.ndarray, *, background: Sequence[int]) -> Self:
        """Those of frames with these labels (M,) in clips of these numbers (M,)."""
        begins = np.ones(len(labels), dtype=bool)
        begins[1:] = (labels[1:] != labels[:-1]) | (clips[1:] != clips[:-1])
        (firsts,) = begins.nonzero()
        lengths = np.diff(firsts, append=len(labels))
        counted = ~np.isin(labels[firsts], background)
        return cls(begins, begins.cumsum() - 1, labels[firsts], clips[firsts], lengths, counted)

    def num_of_clips(self, num_clips: int) -> np.ndarray:
        """The number of segments (N,) of each clip, background left out."""
        return np.bincount(self.clips[self.counted], minlength=num_clips)

    def labels_of(self, clip: int) -> np.ndarray:
        """The labels of a clip's segments, background left out."""
        labels: np.ndarray = self.labels[self.counted & (self.clips == clip)]
        return labels


def measure_segments(
    predicted: np.ndarray,
    actual: np.ndarray,
    *,
    clips: np.ndarray,
    num_clips: int,
    background: Sequence[int] = (),
) -> Measure:
    """`edit`, `f1_10`, `f1_25` and `f1_50` of the class numbers (M,) of frames, in the order of their clips.

    - Frames whose actual class is UNLABELLED are taken out first: what is left of a clip is put together.
    - `edit`: 1 - the Levenshtein distance of the segments' labels / the larger number of segments; the mean
      over clips. It is 1 for a clip that has no segment in truth and answer.
    - `f1_10`: a segment of the answer is right if the true segment of its label that it overlaps most has an
      IoU of at least 0.1 with it, and is not yet that of an earlier segment. Segments of all clips count
      together. NaN where there are none.

    Args:
        predicted: (M,) the answers.
        actual: (M,) the truth.
        clips: (M,) the number of each frame's clip.
        num_clips: N.
        background: classes whose segments do not count, in truth and answers.
    """
    labelled = actual != UNLABELLED
    clips = clips[labelled]
    found, true = (
        _Segments.of_frames(labels[labelled], clips, background=background) for labels in (predicted, actual)
    )
    num_segments = found.num_of_clips(num_clips) + true.num_of_clips(num_clips)  # (N,)
    matches = {name: _count_matches(found, true, overlap, num_clips) for name, overlap in OVERLAPS.items()}
    has_labels = np.unique(clips)
    edit = np.array([_edit_score(found.labels_of(clip), true.labels_of(clip)) for clip in has_labels])

    def count_segments(counts: np.ndarray) -> dict[str, float]:
        weights, total = counts[has_labels], (counts * num_segments).sum()
        metrics = {"edit": np.average(edit, weights=weights) if weights.any() else np.nan}
        for name, matching in matches.items():
            metrics[name] = 2 * (counts * matching).sum() / total if total else np.nan
        return {name: float(value) for name, value in metrics.items()}

    return count_segments


def _count_matches(found: _Segments, true: _Segments, overlap: float, num_clips: int) -> np.ndarray:
    """Of each clip (N,), how many true segments are found."""
    # Between two changes, of either labels, lie the frames that two segments have in common.
    (firsts,) = (found.begins | true.begins).nonzero()
    ours, theirs = found.numbers[firsts], true.numbers[firsts]
    common = np.diff(firsts, append=len(found.begins))
    iou = common / (found.lengths[ours] + true.lengths[theirs] - common)
    equal = (found.labels[ours] == true.labels[theirs]) & found.counted[ours]
    ours, theirs, iou = ours[equal], theirs[equal], iou[equal]
    order = np.lexsort((theirs, -iou, ours))  # the best true segment of each of ours is its first
    _, best = np.unique(ours[order], return_index=True)
    best = order[best]
    matched = np.unique(theirs[best][iou[best] >= overlap])
    return np.bincount(true.clips[matched], minlength=num_clips)


def _edit_score(found: np.ndarray, true: np.ndarray) -> float:
    longest = max(len(found), len(true))
    return 1 - edit_distance(found, true) / longest if longest else 1.0


def edit_distance(one: np.ndarray, other: np.ndarray) -> int:
    """The fewest insertions, deletions and substitutions that turn numbers (M,) into (N,): Levenshtein's."""
    steps = np.arange(len(other) + 1)
    row = steps  # distances of the beginnings of `other` to a beginning of `one`
    for number, label in enumerate(one, start=1):
        without_insertions = np.append(number, np.minimum(row[1:] + 1, row[:-1] + (other != label)))
        row = np.minimum.accumulate(without_insertions - steps) + steps
    return int(row[-1])
