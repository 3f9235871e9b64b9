"""Resizing uint8 images in integer arithmetic: the same bits on every device.

Pillow's antialiased filters as torch has them for uint8 on CPUs: weights are rounded to 16 bits; rows are
resized first, then columns, each rounded to uint8. torch's own kernels for GPUs take floats only.
"""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.contract import Interpolation

_MAX_PRECISION = 22  # bits after the point


def resize(images: Tensor, *, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """Resize (B, C, H, W) uint8 to (B, C, *size) uint8, antialiased; equal bits on CPUs and GPUs."""
    if images.device.type == "cpu":
        return F.interpolate(images, size=size, mode=interpolation, antialias=True, align_corners=False)
    return resize_by_sums(images, size=size, interpolation=interpolation)


def resize_by_sums(images: Tensor, *, size: tuple[int, int], interpolation: Interpolation) -> Tensor:
    """`resize` as weighted sums of shifted images, which any device can compute."""
    x = images.permute(0, 2, 3, 1)  # (B, H, W, C), as frames lie in memory
    for dim in (2, 1):
        if x.shape[dim] != size[dim - 1]:
            x = _resize_axis(x, dim=dim, size=size[dim - 1], interpolation=interpolation)
    return x.permute(0, 3, 1, 2)


def _resize_axis(images: Tensor, *, dim: int, size: int, interpolation: Interpolation) -> Tensor:
    places, weights, precision = _device_taps(images.shape[dim], size, interpolation, images.device)
    shape = [size if axis == dim else 1 for axis in range(4)]
    shape_out = [size if axis == dim else length for axis, length in enumerate(images.shape)]
    total = torch.full(shape_out, 1 << (precision - 1), dtype=torch.int32, device=images.device)  # a half
    for place, weight in zip(places, weights, strict=True):
        total += images.index_select(dim, place).to(torch.int32) * weight.view(shape)
    return (total >> precision).clamp_(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _device_taps(
    num_in: int, num_out: int, interpolation: Interpolation, device: torch.device
) -> tuple[Tensor, Tensor, int]:
    places, weights, precision = _taps(num_in, num_out, interpolation)
    return _to_device(places, device), _to_device(weights, device), precision


def _to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # a copy that does not wait for the kernels before it
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def _taps(num_in: int, num_out: int, interpolation: Interpolation) -> tuple[np.ndarray, np.ndarray, int]:
    """The pixels that make a resized pixel: places and weights (K, num_out), and the weights' precision.

    The weights of a pixel add up to 2 ** precision. After `_compute_indices_min_size_weights_aa` and
    `_compute_index_ranges_int16_weights` of ATen/native/cpu/UpSampleKernel.cpp.
    """
    scale = num_in / num_out
    stretch = max(scale, 1.0)
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
