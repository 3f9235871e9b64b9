"""Scans against hand-written loops: which value of a map stands where in which step."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.learn.sequences import SCAN_FUNCTIONS, pool, to_steps

sizes = st.integers(1, 4)

Steps = list[list[float]]


def by_hand(map_: Tensor, scan: str, size: int) -> Steps:
    """The steps of one map (C, H, W), a value at a time."""
    channels, height, width = map_.shape

    def value(c: int, y: int, x: int) -> float:
        return map_[c, y, x].item() if y < height and x < width else 0.0

    def block(rows: range, columns: range) -> list[float]:
        return [value(c, y, x) for c in range(channels) for y in rows for x in columns]

    everywhere: dict[str, Callable[[], Steps]] = {
        "frames": lambda: [block(range(height), range(width))],
        "locations": lambda: [
            block(range(y, y + 1), range(x, x + 1)) for y in range(height) for x in range(width)
        ],
        "rows": lambda: [block(range(y, y + 1), range(width)) for y in range(height)],
        "columns": lambda: [block(range(height), range(x, x + 1)) for x in range(width)],
        "horizontal_strips": lambda: [
            block(range(y, y + size), range(width)) for y in range(0, height, size)
        ],
        "vertical_strips": lambda: [block(range(height), range(x, x + size)) for x in range(0, width, size)],
        "channels": lambda: [
            [value(c, y, x) for y in range(height) for x in range(width)] for c in range(channels)
        ],
    }
    return everywhere[scan]()


@pytest.mark.parametrize("scan", SCAN_FUNCTIONS)
@given(sizes, sizes, sizes, sizes, sizes, sizes)
def test_every_scan_equals_a_loop_over_frames_channels_rows_and_columns(
    scan, frames, channels, height, width, size, every
):
    maps = torch.rand(2, frames, channels, height, width)
    steps = to_steps(maps, scan=scan, scan_size=size, scan_every=every)
    for clip, clip_steps in zip(maps, steps, strict=True):
        assert clip_steps.tolist() == [by_hand(frame, scan, size)[::every] for frame in clip]


def test_a_strip_is_not_what_a_reshape_of_the_map_gives():
    maps = torch.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    strips = to_steps(maps, scan="horizontal_strips", scan_size=2)
    assert strips.tolist() == [
        [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17],
        [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23],
    ]
    assert not torch.equal(strips, maps.reshape(2, -1))


def test_locations_are_in_raster_order_with_all_channels_each():
    maps = torch.arange(2 * 2 * 3.0).reshape(2, 2, 3)
    steps = to_steps(maps, scan="locations")
    assert steps.tolist() == [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]


def test_a_strip_that_the_map_does_not_fill_ends_in_zeros():
    maps = torch.arange(1.0, 10).reshape(1, 3, 3)
    below = to_steps(maps, scan="horizontal_strips", scan_size=2)
    assert below.tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0]]
    beside = to_steps(maps, scan="vertical_strips", scan_size=2)
    assert beside.tolist() == [[1, 2, 4, 5, 7, 8], [3, 0, 6, 0, 9, 0]]


@given(sizes, sizes, sizes, sizes, sizes, st.sampled_from(["avg", "max"]))
def test_pooled_maps_have_one_value_a_channel(batch, frames, channels, height, width, pooling):
    maps = torch.rand(batch, frames, channels, height, width, dtype=torch.float64)
    pooled = pool(maps, pooling)
    assert pooled.shape == (batch, frames, channels, 1, 1)
    for b in range(batch):
        for t in range(frames):
            for c in range(channels):
                values = [maps[b, t, c, y, x].item() for y in range(height) for x in range(width)]
                expected = max(values) if pooling == "max" else sum(values) / len(values)
                assert pooled[b, t, c].item() == pytest.approx(expected, rel=1e-12)


def test_the_mean_of_a_float16_map_is_not_rounded_to_float16():
    maps = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float16).view(1, 1, 3)
    assert pool(maps, "avg").item() == pytest.approx(7 / 3, rel=1e-6)
