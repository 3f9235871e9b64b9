"""Sequences: feature maps become steps.

SCANS has the ways to read a map (C, H, W), drawn here with C = 2 channels a and b of 2 x 3 locations:

    a1 a2 a3    b1 b2 b3      frames     one step:   a1 a2 a3 a4 a5 a6 b1 b2 b3 b4 b5 b6
    a4 a5 a6    b4 b5 b6      locations  six steps:  a1 b1, a2 b2, a3 b3, a4 b4, a5 b5, a6 b6
                              rows       two steps:  a1 a2 a3 b1 b2 b3, a4 a5 a6 b4 b5 b6
                              columns    three:      a1 a4 b1 b4, a2 a5 b2 b5, a3 a6 b3 b6
                              channels   two:        a1 a2 a3 a4 a5 a6, b1 b2 b3 b4 b5 b6

A strip is several rows (or columns) in one step: channel by channel, each in raster order.
"""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Scan:
    """A way to read a map (C, H, W) as steps."""

    read: Callable[[Tensor, int], Tensor]  # maps (..., C, H, W) and the size of a strip -> steps (..., S, D)
    axes: str = (
        ""  # of a map, along which its steps lie: "hw", "h" or "w"; "": a step has no place in the map
    )
    is_strips: bool = False  # a step is a strip of several rows or columns
    is_whole_frame: bool = False  # a map is one step

    def grid(self, num_steps: int, *, map_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a map's steps; (1, 1) where they have no place, or where steps are left out."""
        shape = {"hw": map_size, "h": (num_steps, 1), "w": (1, num_steps)}.get(self.axes, (1, 1))
        return shape if shape[0] * shape[1] == num_steps else (1, 1)


SCANS: dict[str, Scan] = {
    "frames": Scan(_frames, is_whole_frame=True),
    "locations": Scan(_locations, axes="hw"),
    "rows": Scan(_rows, axes="h"),
    "columns": Scan(_columns, axes="w"),
    "horizontal_strips": Scan(_horizontal_strips, axes="h", is_strips=True),
    "vertical_strips": Scan(_vertical_strips, axes="w", is_strips=True),
    "channels": Scan(_channels),
}


def pool(maps: Tensor, pooling: str) -> Tensor:
    """Apply one of POOLINGS to maps (..., C, H, W)."""
    return POOLINGS[pooling](maps)


def to_steps(maps: Tensor, *, scan: str, scan_size: int = 1, scan_every: int = 1) -> Tensor:
    """Read maps (..., C, H, W) as steps (..., S, D), and keep every `scan_every`-th, from the first on.

    Where strips of `scan_size` rows or columns do not fill the map, the last one is padded with zeros: in
    standardised maps, with the mean of each channel.
    """
    return SCANS[scan].read(maps, scan_size)[..., ::scan_every, :]
