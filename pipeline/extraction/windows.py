"""Windows of frames, as networks for clips read them, cut from a clip's frames as these come.

Drawn for 6 frames a to f, windows of 4 frames and stride 2:

    row 0, of frame a    a a a b
    row 1, of frame c    a b c d
    row 2, of frame e    c d e f
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.contract import Windows


class WindowCutter:
    """The windows of one clip in one view: row k is centred on frame k * stride; edges are replicated.

    Of an even number of frames, one more lies before the centre than after it. A clip has a row for each
    centre that it has, so at least one. Only frames that a later row shows are kept.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._before = windows.frames // 2  # frames of a window before its centre
        self._pixels = torch.empty(0)  # (T, 3, h, w): the frames that are kept
        self._seconds = np.empty(0)  # (T,)
        self._first = 0  # the number of the first of them in the clip
        self._num_rows = 0  # that were given

    def add(self, pixels: Tensor, seconds: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """The rows that the clip's next frames complete.

        Takes frames (T, 3, h, w) of one device and their times (T,). Gives windows (N, 3, frames, h, w) and
        the times (N,) of their centres.
        """
        self._pixels = torch.cat([self._pixels, pixels]) if len(self._pixels) else pixels
        self._seconds = np.append(self._seconds, seconds)
        num_after = self._windows.frames - self._before - 1
        return self._cut(self._num_frames - num_after)

    def end(self) -> tuple[Tensor, np.ndarray]:
        """The rows that are left at the clip's end, as `add` gives them."""
        return self._cut(self._num_frames)

    @property
    def _num_frames(self) -> int:
        return self._first + len(self._pixels)

    def _cut(self, num_centers: int) -> tuple[Tensor, np.ndarray]:
        """The rows, from the next on, whose centres are among the first frames of the clip."""
        stride = self._windows.stride
        num_rows = max(self._num_rows, -(-num_centers // stride))
        centers = np.arange(self._num_rows, num_rows) * stride
        shown = centers[:, None] + np.arange(self._windows.frames) - self._before  # (N, frames)
        shown = shown.clip(0, self._num_frames - 1) - self._first
        rows = self._pixels[torch.from_numpy(shown).to(self._pixels.device)].transpose(1, 2)
        seconds = self._seconds[centers - self._first]
        self._num_rows = num_rows
        num_gone = min(max(num_rows * stride - self._before, self._first), self._num_frames) - self._first
        # A copy: a view would keep all frames in memory.
        self._pixels, self._seconds = self._pixels[num_gone:].clone(), self._seconds[num_gone:]
        self._first += num_gone
        return rows, seconds
