"""Scans: the ways to read a map as steps, and to pool it before."""

from dataclasses import dataclass
from typing import Literal

Pooling = Literal["flatten", "avg", "max"]


@dataclass(frozen=True)
class Scan:
    """A way to read a map (C, H, W) as steps."""

    axes: str = ""  # along which steps lie: "hw", "h" or "w"; "": a step has no place in the map
    is_strips: bool = False  # a step is a strip of several rows or columns
    is_whole_frame: bool = False  # a map is one step

    def grid(self, num_steps: int, *, map_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a map's steps; (1, 1) where they have no place, or where steps are left out."""
        shape = {"hw": map_size, "h": (num_steps, 1), "w": (1, num_steps)}.get(self.axes, (1, 1))
        return shape if shape[0] * shape[1] == num_steps else (1, 1)


SCANS: dict[str, Scan] = {
    "frames": Scan(is_whole_frame=True),
    "locations": Scan(axes="hw"),
    "rows": Scan(axes="h"),
    "columns": Scan(axes="w"),
    "horizontal_strips": Scan(axes="h", is_strips=True),
    "vertical_strips": Scan(axes="w", is_strips=True),
    "channels": Scan(),
}
