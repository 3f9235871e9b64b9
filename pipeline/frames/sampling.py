"""Which frames of a clip are used: arithmetic on presentation times, no decoding.

A video of five frames at 10 fps, and what each sampling takes from it:

    index            0     1     2     3     4
    pts_seconds     0.0   0.1   0.2   0.3   0.4
    all              x     x     x     x     x
    every: 2         x           x           x
    fps: 5           x           x           x      on screen at 0.0, 0.2, 0.4 s
    fps: 20          x x   x x   x x   x x   x      a slower video repeats its frames
    count: 2               x           x            the middle frame of each half
"""

import numpy as np

from pipeline.contract import Sampling

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

    Empty when the clip has no frames.
    """
    begin = 0 if start_seconds is None else int(np.searchsorted(pts_seconds, start_seconds))
    end = len(pts_seconds) if end_seconds is None else int(np.searchsorted(pts_seconds, end_seconds))
    num_frames = end - begin
    if num_frames <= 0:
        return np.empty(0, dtype=np.int64)
    if sampling.every is not None:
        return np.arange(begin, end, sampling.every, dtype=np.int64)
    if sampling.count is not None:
        halves = 2 * np.arange(sampling.count, dtype=np.int64) + 1
        return begin + halves * num_frames // (2 * sampling.count)
    if sampling.fps is not None:
        start = start_seconds or 0.0
        shown_seconds = pts_seconds[begin:end] - _CLOCK_SECONDS
        num_times = int((pts_seconds[end - 1] + _CLOCK_SECONDS - start) * sampling.fps) + 1
        times = start + np.arange(num_times) / sampling.fps
        indices = np.searchsorted(shown_seconds, times, side="right") - 1
        return begin + np.maximum(indices, 0).astype(np.int64)
    return np.arange(begin, end, dtype=np.int64)
