"""Memory of batches: used again, pinned for a GPU, and copied there while the GPU computes."""

import itertools
import math
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Batches that the GPU may be behind. It computes one while the next is prepared; more would only cost memory.
_NUM_IN_USE = 2


class Buffers:
    """Memory for tensors on the CPU that is used again once the last tensor on it is gone, never before.

    Fresh memory costs the first touch of each page; pinned memory, which a GPU copies from without
    waiting, far more. Threads may share one.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: list[np.ndarray] = []  # (bytes,) uint8 each

    def take(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
        """A tensor of any content."""
        size_bytes = math.prod(shape) * dtype.itemsize
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.empty(0, np.uint8)
        if len(memory) < size_bytes:
            memory = (
                torch.empty(size_bytes, dtype=torch.uint8, pin_memory=True).numpy()
                if self._pinned
                else np.empty(size_bytes, np.uint8)
            )
        array = memory[:size_bytes].view(dtype).reshape(shape)
        # The tensor's storage, and so every view of the tensor, holds `array` until it is freed itself.
        weakref.finalize(array, self._free.append, memory).atexit = False
        return torch.from_numpy(array)


def copy_ahead(batches: Iterable[Tensor], device: torch.device) -> Generator[Tensor]:
    """Tensors in pinned memory -> the same on the GPU; the next is copied while one is computed with.

    Copies run on a stream of their own. The stream that is current when a tensor is taken waits for its
    copy, and at most two batches' work is queued there, so that memory is bounded.
    """
    copying = torch.cuda.Stream(device)
    in_use: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def start(host: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            return host, host.to(device, non_blocking=True), copying.record_event()

    try:
        for started, _ in itertools.pairwise(itertools.chain(map(start, batches), [None])):
            assert started
            host, copy, copied = started
            computing = torch.cuda.current_stream(device)
            computing.wait_event(copied)
            copy.record_stream(computing)
            yield copy
            in_use.append((host, computing.record_event()))
            if len(in_use) > _NUM_IN_USE:
                in_use[0][1].synchronize()
                in_use.popleft()
    finally:
        copying.synchronize()  # before the pinned memory may be written to again
