"""Memory of batches: used again, pinned for a GPU, and copied there while the GPU computes."""

import math
import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

# Batches that are queued on the GPU: it computes one while the next is prepared; more would only cost memory.
_NUM_IN_USE = 2

_Item = TypeVar("_Item")


class Buffers:
    """Memory for tensors on the CPU; it is used again once the last tensor in it is gone, never before.

    New memory is slow at the first touch of each page, and far slower if it is pinned, as a GPU needs it to
    copy without waiting. Threads may share one object.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: list[np.ndarray] = []  # (bytes,) uint8 each

    def take(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Tensor:
        """A tensor of this shape and dtype, with arbitrary content."""
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
        # The tensor's storage holds `array`, and every view of the tensor holds the storage.
        weakref.finalize(array, self._free.append, memory).atexit = False
        return torch.from_numpy(array)


def copy_ahead(batches: Iterable[Tensor], device: torch.device) -> Generator[Tensor]:
    """Copies on the GPU of tensors in pinned memory; the next one is copied while one is in use.

    Copies run on a stream of their own. The stream that is current when a tensor is taken waits for its
    copy. At most two batches' work is queued there, so that memory is bounded.
    """
    copying = torch.cuda.Stream(device)
    in_use: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def begin_copy(host: Tensor) -> tuple[Tensor, Tensor, torch.cuda.Event]:
        with torch.cuda.stream(copying):
            return host, host.to(device, non_blocking=True), copying.record_event()

    try:
        for host, copy, copied in _one_ahead(map(begin_copy, batches)):
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


def _one_ahead(items: Iterator[_Item]) -> Generator[_Item]:
    """The items; the next one is taken before one is given."""
    item = next(items, None)
    while item is not None:
        following = next(items, None)
        yield item
        item = following
