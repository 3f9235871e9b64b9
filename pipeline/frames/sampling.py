"""Which frames of a clip are used: arithmetic on presentation times, no decoding.

A video of five frames at 10 fps, and what each sampling takes from it:

    index            0     1     2     3     4
    pts_seconds     0.0   0.1   0.2   0.3   0.4
    all              x     x     x     x     x
    every: 2         x           x           x
    fps: 5           x           x           x      on screen at 0.0, 0.2, 0.4 s
    fps: 20          x x   x x   x x   x x   x      a slower video repeats its frames
    count: 2               x           x            the middle frame of each half
    max_frames: 2          x           x            all, and of these the middle frame of each half
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.contract import Sampling
from pipeline.frames.limits import Limits, NotFramesError, check_num_frames

# A frame counts as on screen this much early: Matroska rounds times to milliseconds, so that the
# third frame of a 30 fps video, due at 0.06667 s, is stored as 0.067 s.
_CLOCK_SECONDS = 0.00051


def sample_indices(
    pts_seconds: np.ndarray,
    *,
    sampling: Sampling,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
) -> np.ndarray:
    """Indices (N,) int64 of the frames to use, in order; a frame may come several times.

    `pts_seconds` (T,) are the increasing presentation times of all frames. The clip is its frames with
    start_seconds <= pts < end_seconds; of those

    - all: each one;
    - every n: the first and each n-th after it;
    - fps x: for k = 0, 1, ... the last frame with pts <= start + k / x, as long as that is not after the
      last frame's pts (start is 0 without start_seconds; before the clip's first frame, its first);
    - count n: floor((k + 1/2) * T / n) for k = 0 ... n - 1: the middles of n equal parts.

    Where that gives more than max_frames, the middles of max_frames equal parts of it are used.

    Empty when the clip has no frames.
    """
    begin = 0 if start_seconds is None else int(np.searchsorted(pts_seconds, start_seconds))
    end = len(pts_seconds) if end_seconds is None else int(np.searchsorted(pts_seconds, end_seconds))
    if end <= begin:
        return np.empty(0, dtype=np.int64)
    start, every = start_seconds or 0.0, sampling.every or 1
    if sampling.fps is None:
        num_given = -(-(end - begin) // every)
    else:
        num_given = int((pts_seconds[end - 1] + _CLOCK_SECONDS - start) * sampling.fps) + 1
    num_taken = sampling.count or min(num_given, sampling.max_frames or num_given)
    halves = 2 * np.arange(num_taken, dtype=np.int64) + 1
    steps = halves * num_given // (2 * num_taken)  # 0, 1, 2, ... where all are taken
    if sampling.fps is None:
        return begin + every * steps
    shown_seconds = pts_seconds[begin:end] - _CLOCK_SECONDS
    indices = np.searchsorted(shown_seconds, start + steps / sampling.fps, side="right") - 1
    return begin + np.maximum(indices, 0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which frames of a source are used."""

    sampling: Sampling
    start_seconds: float | None = None
    end_seconds: float | None = None

    @property
    def is_everything(self) -> bool:
        """Whether that is each frame of the source, once."""
        return self.sampling == Sampling() and not self.start_seconds and self.end_seconds is None

    @property
    def by_total(self) -> bool:
        """Whether a frame is used or not depends on how many there are."""
        return self.sampling.count is not None or self.sampling.max_frames is not None

    def reaches_beyond(self, seconds: float) -> bool:
        """Whether a frame after that time would be used."""
        return self.end_seconds is None or self.end_seconds > seconds

    def choose(self, pts_seconds: np.ndarray, *, path: Path, limits: Limits) -> tuple[np.ndarray, np.ndarray]:
        """Positions (N,) of the frames to use, strictly increasing, and how often each comes (N,).

        Raises NotFramesError when there are none, or more than the limits allow.
        """
        if self.sampling.fps is not None:  # a damaged time may be years ahead
            end = min(pts_seconds[-1], pts_seconds[-1] if self.end_seconds is None else self.end_seconds)
            seconds = end - (self.start_seconds or 0)
            check_num_frames(path, int(seconds * self.sampling.fps), limits=limits)
        indices = sample_indices(
            pts_seconds,
            sampling=self.sampling,
            start_seconds=self.start_seconds,
            end_seconds=self.end_seconds,
        )
        if not len(indices):
            raise NotFramesError(
                path,
                f"it shows no frame from {self.start_seconds or 0} to {self.end_seconds or 'its end'} s",
                remedy="Correct start_seconds and end_seconds in the manifest.",
            )
        return np.unique(indices, return_counts=True)
