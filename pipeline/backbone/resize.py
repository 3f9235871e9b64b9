"""Resizing uint8 images in integer arithmetic: the same bits on every device.

Pillow's antialiased filters as torch has them for uint8 on CPUs: weights are rounded to 16 bits; rows are
resized first, then columns, each rounded to uint8. torch's own kernels for GPUs take floats only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.contract import Interpolation

_MAX_PRECISION = 22  # bits after the point
_MAX_SUMMANDS = 257  # of products of two bytes, for which float32 is exact


@dataclass(frozen=True)
class Window:
    """The part of an image that is wanted, in pixels."""

    top: int
    left: int
    height: int
    width: int


def resize(
    images: Tensor,
    *,
    size: tuple[int, int],
    window: Window,
    interpolation: Interpolation,
    antialias: bool = True,
    by_products: bool = False,
) -> Tensor:
    """Resize (B, C, H, W) uint8 to `size` and cut out the window. Bits are the same on every device.

    `by_products` resizes by products of matrices, only what is needed, where torch has a kernel too.
    """
    if images.device.type == "cpu" and antialias and not by_products:
        x = F.interpolate(images, size=size, mode=interpolation, antialias=True, align_corners=False)
        return crop(x, window)
    device = images.device
    columns = _axis(images.shape[3], size[1], window.left, window.width, interpolation, antialias, device)
    rows = _axis(images.shape[2], size[0], window.top, window.height, interpolation, antialias, device)
    x = images[:, :, rows.used, columns.used]
    return rows.resize(columns.resize(x).mT).mT


def crop(images: Tensor, window: Window) -> Tensor:
    """The window of images (B, C, H, W): a view."""
    top, left = window.top, window.left
    return images[:, :, top : top + window.height, left : left + window.width]


@dataclass(frozen=True)
class _Axis:
    """How the last axis of images is resized: `size_out` pixels of it, each a sum of pixels with weights.

    A weight of 16 bits is split into two bytes, so that sums are exact in floating point, in any order.
    """

    used: slice  # the pixels that count
    high: Tensor  # (K, size_out): the weights' high bytes, -128 to 127
    low: Tensor  # (K, size_out): their low bytes, 0 to 255
    precision: int  # the weights of a pixel add up to 2 ** precision

    def resize(self, x: Tensor) -> Tensor:
        """(..., K) uint8 -> (..., size_out) uint8."""
        x = x.to(self.high.dtype, memory_format=torch.contiguous_format)
        total = ((x @ self.high).to(torch.int32) << 8) + (x @ self.low).to(torch.int32)
        half = 1 << (self.precision - 1)
        return ((total + half) >> self.precision).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _axis(
    num_in: int,
    num_out: int,
    first: int,
    size_out: int,
    interpolation: Interpolation,
    antialias: bool,
    device: torch.device,
) -> _Axis:
    """Of an axis of `num_in` pixels, resized to `num_out`, the `size_out` pixels from `first` on."""
    places, weights, precision = _taps(num_in, num_out, interpolation, antialias)
    places, weights = (each[:, first : first + size_out] for each in (places, weights))
    dense = np.zeros((num_in, size_out), np.int32)
    np.add.at(dense, (places, np.arange(size_out)), weights)
    used = slice(int(places.min()), int(places.max()) + 1)
    dtype = np.float32 if len(places) <= _MAX_SUMMANDS else np.float64
    high, low = (_to_device(part[used].astype(dtype), device) for part in (dense >> 8, dense & 255))
    return _Axis(used, high, low, precision)


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # a copy that does not wait for the kernels before it
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def _taps(
    num_in: int, num_out: int, interpolation: Interpolation, antialias: bool
) -> tuple[np.ndarray, np.ndarray, int]:
    """The pixels that make a resized pixel: places and weights (K, num_out), and the weights' precision.

    The weights of a pixel add up to 2 ** precision. After `_compute_indices_min_size_weights_aa` and
    `_compute_index_ranges_int16_weights` of ATen/native/cpu/UpSampleKernel.cpp.
    """
    scale = num_in / num_out
    stretch = max(scale, 1.0) if antialias else 1.0  # of the filter
    radius, filtered = _FILTERS[interpolation]
    support = radius * stretch
    centers = scale * (np.arange(num_out) + 0.5)
    first = np.maximum((centers - support + 0.5).astype(np.int64), 0)  # truncated, like C's casts
    last = np.minimum((centers + support + 0.5).astype(np.int64), num_in)  # exclusive
    num_taps = 2 * int(np.ceil(support)) + 1
    places = first + np.arange(num_taps)[:, None]  # (K, num_out)
    exact = filtered(np.abs(places - centers + 0.5) / stretch)
    exact[places >= last] = 0
    exact /= exact.sum(axis=0)
    precision = 0
    while precision < _MAX_PRECISION and int(0.5 + exact.max() * (1 << (precision + 1))) < 1 << 15:
        precision += 1
    weights = np.trunc(exact * (1 << precision) + np.copysign(0.5, exact)).astype(np.int32)
    used = weights.any(axis=1)
    return np.minimum(places, num_in - 1)[used], weights[used], precision


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.where(x < 1, 1 - x, 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    a = -0.5  # Keys, as in Pillow
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


# Each interpolation's radius, in pixels of the coarser image, and its weight at a distance from the centre.
_FILTERS: dict[Interpolation, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "bilinear": (1.0, _bilinear),
    "bicubic": (2.0, _bicubic),
}
