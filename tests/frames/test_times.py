"""Times of frames: the good ones stay, the others are placed between them."""

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.frames.times import in_order, mended

MILLISECOND = Fraction(1, 1000)


def milliseconds(times: Sequence[int | None], *, rate: int | None = 10) -> list[float]:
    frames = mended(
        ((t, i) for i, t in enumerate(times)), time_base=MILLISECOND, rate=rate and Fraction(rate)
    )
    seconds, order = zip(*frames, strict=True)
    assert order == tuple(range(len(times)))
    return [1000 * second for second in seconds]


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([0, 40, 80, 1000, 1040, 3000], [0, 40, 80, 1000, 1040, 3000]),
        ([500, 540], [0, 40]),
        ([0, 100, 100, 300, 400], [0, 100, 200, 300, 400]),
        ([0, 100, 100, 100, 400], [0, 100, 200, 300, 400]),
        ([0, 100, 9000, 300, 400], [0, 100, 200, 300, 400]),
        ([0, 100, 9000, 9100, 400, 500], [0, 100, 200, 300, 400, 500]),
        ([0, 100, -7, 300, 400], [0, 100, 200, 300, 400]),
        ([0, 100, None, None, 400], [0, 100, 200, 300, 400]),
        ([None, None, 200, 300], [0, 100, 200, 300]),
        ([9000, 100, 200, 300], [0, 100, 200, 300]),
        ([0, 100, 200, 200], [0, 100, 200, 300]),
        ([None, None, None], [0, 100, 200]),
        ([0, 40, None, None], [0, 40, 80, 120]),
        ([0, 100, 200, 0, 100, 200], [0, 100, 200, 300, 400, 500]),  # joined files
        ([*range(0, 1000, 100), *range(0, 400, 40)], [*range(0, 1000, 100), *range(1000, 1400, 40)]),
        ([5] * 12 + [1205, 1305], [*range(0, 1200, 100), 1200, 1300]),  # a clock that stood still
        ([0, 40, 10**12], [0, 40, 10**12]),
    ],
)
def test_good_times_stay_and_bad_ones_are_placed_between(
    times: list[int | None], expected: list[float]
) -> None:
    assert milliseconds(times) == pytest.approx(expected)


increasing = st.lists(st.integers(1, 10_000), min_size=2, max_size=60).map(
    lambda steps: np.cumsum(steps).tolist()
)


@given(increasing, st.data())
def test_one_bad_time_moves_no_other(times: list[int], data: st.DataObject) -> None:
    at = data.draw(st.integers(1, len(times) - 2) if len(times) > 2 else st.just(1))
    bad = data.draw(st.one_of(st.none(), st.just(times[at - 1]), st.integers(-(10**6), times[0] - 1)))
    found = milliseconds([*times[:at], bad, *times[at + 1 :]])
    others = [i for i in range(len(times)) if i != at and (at < len(times) - 1 or i < at)]
    np.testing.assert_allclose(np.array(found)[others], np.array(times)[others] - times[0], rtol=1e-9)


@given(st.lists(st.one_of(st.none(), st.integers(-1000, 1000)), min_size=1, max_size=60))
def test_times_increase_strictly_from_zero_whatever_they_were(times: list[int | None]) -> None:
    found = milliseconds(times)
    assert found[0] == 0
    assert all(a < b for a, b in itertools.pairwise(found))


@given(increasing)
def test_times_that_increase_are_exact(times: list[int]) -> None:
    frames = mended([(t, None) for t in times], time_base=Fraction(1001, 30000), rate=None)
    assert [seconds for seconds, _ in frames] == [(t - times[0]) * 1001 / 30000 for t in times]


def test_without_times_and_rate_there_is_no_answer() -> None:
    with pytest.raises(ValueError, match="neither presentation times nor a frame rate"):
        milliseconds([None, None], rate=None)


@given(st.permutations(range(20)))
def test_times_of_decoding_are_sorted_as_far_as_frames_are_reordered(order: list[int]) -> None:
    times = sorted(order, key=lambda t: t + order[t] % 8)  # none is more than seven places away
    assert [t for t, _ in in_order([(t, None) for t in times])] == list(range(20))
    assert [frame for _, frame in in_order(list(enumerate("abc")))] == list("abc")
