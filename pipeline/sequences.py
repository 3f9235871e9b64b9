"""Sequences: feature maps become steps."""

from collections.abc import Callable

from torch import Tensor


def _keep(maps: Tensor) -> Tensor:
    return maps


def _average(maps: Tensor) -> Tensor:
    return maps.mean(dim=(-2, -1), keepdim=True)


def _maximum(maps: Tensor) -> Tensor:
    return maps.amax(dim=(-2, -1), keepdim=True)


# Each takes maps (..., T, C, H, W) to maps of as many or fewer locations.
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {"flatten": _keep, "avg": _average, "max": _maximum}


def scan_frames(maps: Tensor) -> Tensor:
    """Each frame is a step: (..., T, C, H, W) -> (..., T, C * H * W), channel by channel, in raster order."""
    return maps.flatten(-3)


# Each takes maps (..., T, C, H, W) to a sequence (..., L, D). L is a multiple of T and the steps of a
# frame are neighbours, so that padding frames become padding steps.
SCANS: dict[str, Callable[[Tensor], Tensor]] = {"frames": scan_frames}


def to_sequence(maps: Tensor, lengths: Tensor, *, scan: str, pooling: str) -> tuple[Tensor, Tensor]:
    """Maps (B, T, C, H, W) of clips with `lengths` (B,) frames as steps (B, L, D), and the steps' lengths."""
    steps = SCANS[scan](POOLINGS[pooling](maps))  # (B, L, D)
    return steps, lengths * (steps.shape[1] // maps.shape[1])
