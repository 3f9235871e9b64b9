"""Comparison of two sets of features of the same clips, frame by frame."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from pipeline.errors import ConfigError
from pipeline.store.format.records import RECORD_SUFFIX, read_record
from pipeline.store.view import RECORDS_NAME

Item = TypeVar("Item")

_MOVED_SECONDS = 1e-3  # between two times of one frame; containers round to about as much
_CHUNK_FRAMES = 256  # are compared at a time


class ClipFeatures(Protocol):
    """Features by clip, such as a view."""

    def read(self, clip_id: str) -> np.ndarray:
        """Features (T, C, H, W) of a clip."""

    def frame_seconds(self, clip_id: str) -> np.ndarray:
        """Presentation times (T,) float64 of a clip's frames in seconds."""


@dataclass
class Comparison:
    """How far features are from others that they should equal; `add` counts in a clip."""

    num_clips: int = 0
    num_frames: int = 0  # that are in both
    num_missing: int = 0  # frames that are in one of the two alone
    num_moved: int = 0  # frames whose times differ
    largest: float = 0.0  # difference of two values
    _num_values: int = 0
    _num_equal: int = 0
    _cosines: float = 0.0
    _squared_distance: float = 0.0
    _squared_norm: float = 0.0

    @property
    def cosine(self) -> float:
        """Between the two maps of a frame, as vectors, on average; NaN without frames."""
        return self._cosines / self.num_frames if self.num_frames else float("nan")

    @property
    def equal_share(self) -> float:
        """The share of values with equal bits; NaN without frames."""
        return self._num_equal / self._num_values if self._num_values else float("nan")

    @property
    def distance(self) -> float:
        """Euclidean distance between all values of the two, relative to the norm of the second."""
        if self._squared_distance == 0:
            return 0.0
        return float(np.sqrt(self._squared_distance / self._squared_norm)) if self._squared_norm else np.inf

    def is_within(self, tolerance: float) -> bool:
        """Whether the distance is at most `tolerance`, and every frame is there at its time."""
        return (
            self.num_frames > 0
            and self.num_missing == 0
            and self.num_moved == 0
            and self.distance <= tolerance
        )

    def add(
        self,
        maps: np.ndarray,
        expected: np.ndarray,
        *,
        seconds: np.ndarray | None = None,
        expected_seconds: np.ndarray | None = None,
    ) -> None:
        """Count in a clip: maps (T, C, H, W) and times (T,), and those expected, with a T of their own.

        As many frames are paired by their number, else by time; without times always by number. Raises
        ValueError for maps of different shapes (C, H, W).
        """
        if maps.shape[1:] != expected.shape[1:]:
            raise ValueError(f"Maps of shape {maps.shape[1:]} can't be compared with {expected.shape[1:]}.")
        rows = others = np.arange(min(len(maps), len(expected)))
        if seconds is not None and expected_seconds is not None:
            if len(maps) != len(expected):
                rows, others = pair_frames(seconds, expected_seconds)
            self.num_moved += int((np.abs(seconds[rows] - expected_seconds[others]) > _MOVED_SECONDS).sum())
        self.num_clips += 1
        self.num_frames += len(rows)
        self.num_missing += len(maps) + len(expected) - 2 * len(rows)
        for start in range(0, len(rows), _CHUNK_FRAMES):
            part = slice(start, start + _CHUNK_FRAMES)
            self._add_frames(maps[rows[part]], expected[others[part]])

    def _add_frames(self, one: np.ndarray, other: np.ndarray) -> None:
        """Count in frames (T, C, H, W) of two sets."""
        one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)  # (T, D)
        if one.dtype == other.dtype:
            self._num_equal += int((one.view(f"u{one.itemsize}") == other.view(f"u{one.itemsize}")).sum())
        else:
            self._num_equal += int((one == other).sum())
        self._num_values += one.size
        one, other = one.astype(np.float64), other.astype(np.float64)
        difference = one - other
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0)))
        self._squared_distance += float((difference**2).sum())
        self._squared_norm += float((other**2).sum())
        self._cosines += float(frame_cosines(one, other).sum())


def pair_frames(seconds: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which frames (P,) of one clip are which (P,) of another, by their increasing times (T,) in seconds.

    A frame belongs to the nearest in time, if each is the other's nearest, less than half of a frame's usual
    duration apart.
    """
    if not len(seconds) or not len(others):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    durations = [np.median(np.diff(times)) for times in (seconds, others) if len(times) > 1]
    half = min(durations, default=np.inf) / 2
    forth, back = _nearest(seconds, others), _nearest(others, seconds)
    rows = np.arange(len(seconds))
    keep = (back[forth] == rows) & (np.abs(others[forth] - seconds) < half)
    return rows[keep], forth[keep]


def frame_cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosine (T,) of each frame's vectors (T, D); of two zero vectors it is 1, of one and another 0."""
    norms = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    product = norms[0] * norms[1]
    cosines: np.ndarray = np.where(product > 0, (one * other).sum(axis=1) / np.maximum(product, 1e-300), 0.0)
    return np.where((norms[0] == 0) & (norms[1] == 0), 1.0, np.minimum(cosines, 1.0))


def _nearest(times: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of the times (T,) the place of the nearest of `others`, which increase."""
    right = np.clip(np.searchsorted(others, times), 0, len(others) - 1)
    left = np.maximum(right - 1, 0)
    return np.where(np.abs(others[left] - times) <= np.abs(others[right] - times), left, right)


def compare_clips(features: ClipFeatures, expected: ClipFeatures, clip_ids: Iterable[str]) -> Comparison:
    """How far the features of these clips, which both have, are from those expected."""
    comparison = Comparison()
    for clip_id in clip_ids:
        comparison.add(
            features.read(clip_id),
            expected.read(clip_id),
            seconds=features.frame_seconds(clip_id),
            expected_seconds=expected.frame_seconds(clip_id),
        )
    return comparison


def evenly(items: Sequence[Item], number: int) -> list[Item]:
    """So many of the items, evenly spaced, or all. Raises ConfigError for a number below 1."""
    if number < 1:
        raise ConfigError(f"{number} clips: give at least 1.")
    count = min(number, len(items))
    return [items[place * len(items) // count] for place in range(count)]


def clip_keys(folder: Path) -> dict[str, bytes]:
    """The keys of the clips in a tap's folder, by the ids that they had when they were computed.

    A key is the digest of a clip's sources and its time range.
    """
    records = map(read_record, sorted((folder / RECORDS_NAME).glob(f"*{RECORD_SUFFIX}")))
    return {clip.clip_id: key for record in records for key, clip in record.clip_sources().items()}
