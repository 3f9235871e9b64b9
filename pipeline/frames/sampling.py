"""Which frames of a clip are used: arithmetic on presentation times, no decoding.

A video of five frames at 10 fps, and what each sampling takes from it:

    position         0     1     2     3     4
    frame_seconds   0.0   0.1   0.2   0.3   0.4
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
from pipeline.frames.limits import NotFramesError, check_num_frames
from pipeline.settings.extract import Limits

# A frame counts as on screen this much early: Matroska rounds times to milliseconds, so that the
# third frame of a 30 fps video, due at 0.06667 s, is stored as 0.067 s.
_CLOCK_SECONDS = 0.00051


def sample_positions(
    frame_seconds: np.ndarray,
    *,
    sampling: Sampling,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
) -> np.ndarray:
    """Positions (N,) int64, in order, of the frames to use; a frame may be used several times.

    `frame_seconds` (T,) float64 are the increasing presentation times of all frames. The clip consists of
    the frames with start_seconds <= time < end_seconds. Of these, the samplings use:

    - all: each frame;
    - every n: the first frame and each n-th after it;
    - fps x: the frames on screen at start + k / x seconds for k = 0, 1, ..., up to the last frame's time,
      where start is start_seconds, or else 0. Before the clip's first frame, that one counts as on screen;
    - count n: frame floor((k + 1/2) * T / n) for k = 0 ... n - 1: the middle frames of n equal parts.

    If these are more than max_frames, the middle frames of max_frames equal parts of them are used.

    Empty when the clip has no frames.
    """
    begin = 0 if start_seconds is None else int(np.searchsorted(frame_seconds, start_seconds))
    end = len(frame_seconds) if end_seconds is None else int(np.searchsorted(frame_seconds, end_seconds))
    if end <= begin:
        return np.empty(0, dtype=np.int64)
    start, every = start_seconds or 0.0, sampling.every or 1
    if sampling.fps is None:
        num_given = -(-(end - begin) // every)
    else:
        num_given = int((frame_seconds[end - 1] + _CLOCK_SECONDS - start) * sampling.fps) + 1
    num_used = sampling.count or min(num_given, sampling.max_frames or num_given)
    halves = 2 * np.arange(num_used, dtype=np.int64) + 1
    steps = halves * num_given // (2 * num_used)  # 0, 1, 2, ... where all are used
    if sampling.fps is None:
        return begin + every * steps
    shown_seconds = frame_seconds[begin:end] - _CLOCK_SECONDS
    positions = np.searchsorted(shown_seconds, start + steps / sampling.fps, side="right") - 1
    return begin + np.maximum(positions, 0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which frames of a source are used."""

    sampling: Sampling
    start_seconds: float | None = None
    end_seconds: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the clip is the whole source."""
        return not self.start_seconds and self.end_seconds is None

    @property
    def step(self) -> int | None:
        """Of `every: n` the n (1 for all frames); None where the choice depends on times or on the total."""
        every = self.sampling.every
        return (every or 1) if self.sampling == Sampling(every=every) else None

    @property
    def by_total(self) -> bool:
        """Whether the choice depends on how many frames there are in total."""
        return self.sampling.count is not None or self.sampling.max_frames is not None

    def reaches_beyond(self, seconds: float) -> bool:
        """Whether a frame after that time would be used."""
        return self.end_seconds is None or self.end_seconds > seconds

    def choose(
        self, frame_seconds: np.ndarray, *, path: Path, limits: Limits
    ) -> tuple[np.ndarray, np.ndarray]:
        """Positions (N,) int64 of the frames to use, strictly increasing, and how often each is used (N,).

        `frame_seconds` (T,) float64 are the times of all frames. Raises NotFramesError when no frame is to be
        used, or more than the limits allow.
        """
        if self.sampling.fps is not None:  # a damaged time may be years ahead
            end = min(frame_seconds[-1], frame_seconds[-1] if self.end_seconds is None else self.end_seconds)
            seconds = end - (self.start_seconds or 0)
            check_num_frames(path, int(seconds * self.sampling.fps), limits=limits)
        positions = sample_positions(
            frame_seconds,
            sampling=self.sampling,
            start_seconds=self.start_seconds,
            end_seconds=self.end_seconds,
        )
        if not len(positions):
            raise NotFramesError(
                path,
                f"it shows no frame from {self.start_seconds or 0} to {self.end_seconds or 'its end'} s",
                remedy="Correct start_seconds and end_seconds in the manifest.",
            )
        return np.unique(positions, return_counts=True)
