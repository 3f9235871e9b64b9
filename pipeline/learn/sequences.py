"""Sequences: feature maps become steps.

SCAN_FUNCTIONS has the ways to read a map (C, H, W), drawn here with C = 2 channels a and b of 2 x 3 places:

    a1 a2 a3    b1 b2 b3      frames     one step:   a1 a2 a3 a4 a5 a6 b1 b2 b3 b4 b5 b6
    a4 a5 a6    b4 b5 b6      locations  six steps:  a1 b1, a2 b2, a3 b3, a4 b4, a5 b5, a6 b6
                              rows       two steps:  a1 a2 a3 b1 b2 b3, a4 a5 a6 b4 b5 b6
                              columns    three:      a1 a4 b1 b4, a2 a5 b2 b5, a3 a6 b3 b6
                              channels   two:        a1 a2 a3 a4 a5 a6, b1 b2 b3 b4 b5 b6

A strip is several rows (or columns) in one step: channel by channel, each in raster order.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def _keep(maps: Tensor) -> Tensor:
    return maps


def _average(maps: Tensor) -> Tensor:
    return maps.mean(dim=(-2, -1), keepdim=True, dtype=torch.promote_types(maps.dtype, torch.float32))


def _maximum(maps: Tensor) -> Tensor:
    return maps.amax(dim=(-2, -1), keepdim=True)


# Each takes maps (..., C, H, W), and gives (..., C, H, W) or (..., C, 1, 1); the mean of float16 is float32.
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {"flatten": _keep, "avg": _average, "max": _maximum}


def _frames(maps: Tensor, _: int) -> Tensor:
    return maps.flatten(-3).unsqueeze(-2)


def _locations(maps: Tensor, _: int) -> Tensor:
    return maps.flatten(-2).transpose(-2, -1)


def _rows(maps: Tensor, _: int) -> Tensor:
    return _horizontal_strips(maps, 1)


def _columns(maps: Tensor, _: int) -> Tensor:
    return _vertical_strips(maps, 1)


def _horizontal_strips(maps: Tensor, size: int) -> Tensor:
    maps = functional.pad(maps, (0, 0, 0, -maps.shape[-2] % size))
    *axes, height, width = maps.shape
    strips = maps.reshape(*axes, height // size, size, width)  # (..., C, S, size, W)
    return strips.movedim(-3, -4).flatten(-3)


def _vertical_strips(maps: Tensor, size: int) -> Tensor:
    maps = functional.pad(maps, (0, -maps.shape[-1] % size))
    *axes, width = maps.shape
    strips = maps.reshape(*axes, width // size, size)  # (..., C, H, S, size)
    return strips.movedim(-2, -4).flatten(-3)


def _channels(maps: Tensor, _: int) -> Tensor:
    return maps.flatten(-2)


# Each takes maps (..., C, H, W) and the size of a strip, and gives steps (..., S, D).
SCAN_FUNCTIONS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "frames": _frames,
    "locations": _locations,
    "rows": _rows,
    "columns": _columns,
    "horizontal_strips": _horizontal_strips,
    "vertical_strips": _vertical_strips,
    "channels": _channels,
}


def pool(maps: Tensor, pooling: str) -> Tensor:
    """Apply one of POOLINGS to maps (..., C, H, W)."""
    return POOLINGS[pooling](maps)


def to_steps(maps: Tensor, *, scan: str, scan_size: int = 1, scan_every: int = 1) -> Tensor:
    """Read maps (..., C, H, W) as steps (..., S, D), and keep every `scan_every`-th, from the first on.

    Where strips of `scan_size` rows or columns do not fill the map, the last one is padded with zeros: in
    standardised maps, with the mean of each channel.
    """
    return SCAN_FUNCTIONS[scan](maps, scan_size)[..., ::scan_every, :]
