"""What two sets of features have in common, frame by frame."""

import math

import numpy as np
import pytest

from pipeline.store.upkeep.compare import Comparison, frame_cosines, pair_frames
from tests.support.features import clip_maps, frame_times


def compared(maps: np.ndarray, expected: np.ndarray, *times: np.ndarray) -> Comparison:
    comparison = Comparison()
    seconds = dict(zip(("seconds", "expected_seconds"), times, strict=False))
    comparison.add(maps, expected, **seconds)
    return comparison


def test_equal_features_have_equal_bits_and_no_distance() -> None:
    maps = clip_maps("a", 300)
    found = compared(maps, maps.copy(), frame_times(300), frame_times(300))
    assert (found.num_frames, found.num_missing, found.num_moved) == (300, 0, 0)
    assert (found.largest, found.distance, found.equal_share) == (0, 0, 1)
    assert found.cosine == pytest.approx(1)
    assert found.is_within(0)


def test_one_value_of_one_frame_is_found() -> None:
    maps = clip_maps("a", 5)
    other = maps.copy()
    other[3, 0, 1, 1] += np.float16(4)
    found = compared(other, maps)
    assert found.largest == pytest.approx(4, abs=0.01)
    assert found.equal_share == 1 - 1 / maps.size
    norm = np.linalg.norm(maps.astype(float))
    assert found.distance == pytest.approx(found.largest / norm)
    assert not found.is_within(0.9 * found.distance)
    assert found.is_within(1.1 * found.distance)


def test_a_missing_frame_is_counted_and_the_others_are_paired_by_time() -> None:
    maps = clip_maps("a", 6)
    found = compared(np.delete(maps, 2, axis=0), maps, np.delete(frame_times(6), 2), frame_times(6))
    assert (found.num_frames, found.num_missing, found.num_moved, found.largest) == (5, 1, 0, 0)
    assert not found.is_within(1)


def test_moved_frames_are_counted() -> None:
    maps, times = clip_maps("a", 4), frame_times(4)
    found = compared(maps, maps, times + np.array([0, 0, 0.01, 0.01]), times)
    assert (found.num_moved, found.largest) == (2, 0)
    assert not found.is_within(1)


def test_frames_of_another_rate_are_paired_with_the_nearest() -> None:
    rows, others = pair_frames(np.arange(5) / 5, np.arange(10) / 10)
    assert rows.tolist() == [0, 1, 2, 3, 4]
    assert others.tolist() == [0, 2, 4, 6, 8]


def test_cosines_of_zero_vectors_are_defined() -> None:
    one, other = np.array([[0.0, 0], [0, 0], [1, 0]]), np.array([[0.0, 0], [1, 0], [0, 2]])
    assert frame_cosines(one, other).tolist() == [1, 0, 0]


def test_nothing_in_common_is_not_within_any_tolerance() -> None:
    found = compared(clip_maps("a", 0), clip_maps("a", 3))
    assert math.isnan(found.cosine)
    assert (found.num_missing, found.is_within(1)) == (3, False)


def test_maps_of_other_shapes_are_refused() -> None:
    maps = clip_maps("a", 2)
    with pytest.raises(ValueError, match=r"\(4, 3, 2\).*\(4, 3\)"):
        compared(maps, maps[..., 0])
