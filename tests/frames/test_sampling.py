"""Sampling: which frames, by arithmetic on times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.contract import Sampling
from pipeline.frames.sampling import sample_positions

TIMES = np.arange(5) / 10  # five frames at 10 fps, as drawn in the module

gaps_seconds = st.lists(st.floats(0.002, 2.0), min_size=1, max_size=60)
samplings = st.one_of(
    st.just(Sampling()),
    st.integers(1, 20).map(lambda n: Sampling(every=n)),
    st.integers(1, 80).map(lambda n: Sampling(count=n)),
    st.floats(0.1, 60).map(lambda x: Sampling(fps=x)),
    st.integers(1, 20).map(lambda n: Sampling(max_frames=n)),
    st.builds(Sampling, fps=st.floats(0.1, 60), max_frames=st.integers(1, 20)),
)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0, 1, 2, 3, 4]),
        (Sampling(every=2), [0, 2, 4]),
        (Sampling(every=9), [0]),
        (Sampling(fps=5), [0, 2, 4]),
        (Sampling(fps=20), [0, 0, 1, 1, 2, 2, 3, 3, 4]),
        (Sampling(fps=1), [0]),
        (Sampling(count=2), [1, 3]),
        (Sampling(count=1), [2]),
        (Sampling(count=5), [0, 1, 2, 3, 4]),
        (Sampling(count=10), [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),
        (Sampling(max_frames=2), [1, 3]),
        (Sampling(max_frames=9), [0, 1, 2, 3, 4]),
        (Sampling(every=2, max_frames=1), [2]),
        (Sampling(fps=20, max_frames=3), [0, 2, 3]),
    ],
)
def test_samplings_take_the_frames_drawn_in_the_documentation(
    sampling: Sampling, expected: list[int]
) -> None:
    assert sample_positions(TIMES, sampling=sampling).tolist() == expected


def test_a_range_includes_its_start_and_excludes_its_end() -> None:
    indices = sample_positions(TIMES, sampling=Sampling(), start_seconds=0.1, end_seconds=0.3)
    assert indices.tolist() == [1, 2]


def test_adjacent_ranges_share_no_frame_and_lose_none() -> None:
    times = np.arange(30) * 1001 / 30000
    parts = [(None, 0.25), (0.25, 0.5005), (0.5005, None)]
    taken = [
        sample_positions(times, sampling=Sampling(), start_seconds=start, end_seconds=end)
        for start, end in parts
    ]
    assert np.concatenate(taken).tolist() == list(range(30))


def test_every_and_count_start_at_the_range() -> None:
    assert sample_positions(TIMES, sampling=Sampling(every=2), start_seconds=0.1).tolist() == [1, 3]
    assert sample_positions(TIMES, sampling=Sampling(count=1), start_seconds=0.2).tolist() == [3]


def test_fps_goes_by_time_and_not_by_index() -> None:
    times = np.array([0.0, 0.1, 0.2, 1.0, 1.9])  # a video that stalls
    assert sample_positions(times, sampling=Sampling(fps=2)).tolist() == [0, 2, 3, 3]


def test_fps_before_the_ranges_first_frame_shows_its_first_frame() -> None:
    indices = sample_positions(TIMES, sampling=Sampling(fps=10), start_seconds=0.15)
    assert indices.tolist() == [2, 2, 3]


def test_fps_is_not_upset_by_times_rounded_to_milliseconds() -> None:
    times = np.round(np.arange(90) / 30, 3)  # Matroska
    assert sample_positions(times, sampling=Sampling(fps=30)).tolist() == list(range(90))
    assert sample_positions(times, sampling=Sampling(fps=15)).tolist() == list(range(0, 90, 2))


def test_an_empty_range_gives_no_frames() -> None:
    for sampling in (Sampling(), Sampling(every=2), Sampling(fps=3), Sampling(count=4)):
        assert sample_positions(TIMES, sampling=sampling, start_seconds=0.41).tolist() == []
        assert sample_positions(TIMES[:0], sampling=sampling).tolist() == []


def test_two_samplings_at_once_are_refused() -> None:
    with pytest.raises(ValidationError, match="give one of"):
        Sampling(every=2, fps=3)
    with pytest.raises(ValidationError, match="leave 'max_frames' out"):
        Sampling(count=2, max_frames=3)


def test_max_frames_is_read_and_written_with_the_others_and_alone() -> None:
    for form in ({"max_frames": 3}, {"every": 2, "max_frames": 3}, {"fps": 2.5, "max_frames": 8}):
        assert Sampling.model_validate(form).model_dump() == form
    assert Sampling().model_dump() == "all"  # contracts made without a cap keep their digest


@given(gaps_seconds, samplings, st.integers(1, 30))
def test_a_cap_spreads_over_the_whole_clip_and_not_over_its_beginning(
    gaps: list[float], sampling: Sampling, cap: int
) -> None:
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    if sampling.count is not None:
        return
    given = sample_positions(times, sampling=sampling.model_copy(update={"max_frames": None}))
    capped = sample_positions(times, sampling=sampling.model_copy(update={"max_frames": cap}))
    if len(given) <= cap:
        assert capped.tolist() == given.tolist()
    else:
        assert capped.tolist() == [given[(2 * k + 1) * len(given) // (2 * cap)] for k in range(cap)]


@given(gaps_seconds, samplings, st.floats(0, 20), st.floats(0.01, 20))
def test_indices_are_in_order_and_in_range(
    gaps: list[float], sampling: Sampling, start: float, duration: float
) -> None:
    times = np.concatenate([[0.0], np.cumsum(gaps)])
    indices = sample_positions(times, sampling=sampling, start_seconds=start, end_seconds=start + duration)
    inside = [i for i, time in enumerate(times) if start <= time < start + duration]
    assert set(indices.tolist()) <= set(inside)
    assert (np.diff(indices) >= 0).all()
    assert bool(len(indices)) == bool(inside) or sampling.fps is not None
    if sampling.count is not None and inside:
        assert len(indices) == sampling.count


@given(gaps_seconds, st.floats(0.5, 60))
def test_fps_equals_a_loop_over_the_clock(gaps: list[float], fps: float) -> None:
    times = np.round(np.concatenate([[0.0], np.cumsum(gaps)]), 3)
    expected = []
    k = 0
    while k / fps <= times[-1] + 0.00051:
        expected.append(max(i for i, time in enumerate(times) if i == 0 or time - 0.00051 <= k / fps))
        k += 1
    indices = sample_positions(times, sampling=Sampling(fps=fps)).tolist()
    assert abs(len(indices) - len(expected)) <= 1  # the last instant may lie on the edge
    assert indices[: len(expected)] == expected[: len(indices)]


@given(st.integers(1, 500), st.integers(1, 500))
def test_count_takes_the_middle_of_equal_parts(num_frames: int, count: int) -> None:
    indices = sample_positions(np.arange(num_frames) / 25, sampling=Sampling(count=count))
    assert indices.tolist() == [(2 * k + 1) * num_frames // (2 * count) for k in range(count)]
