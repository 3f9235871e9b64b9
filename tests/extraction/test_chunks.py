"""How a plan is cut into tasks."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.extraction.cluster.chunks import Chunks
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from tests.support.toy import make_clip


def plan_of(num_clips: int) -> list[PlannedClip]:
    return [PlannedClip(make_clip(str(n)), n.to_bytes(16), "new", ("layer4",)) for n in range(num_clips)]


def took(clips: tuple[PlannedClip, ...], *, frames_each: int, seconds_each: float) -> Result:
    num_frames = frames_each * len(clips)
    return Result(
        num_clips=len(clips),
        num_frames=num_frames,
        num_batches=-(-num_frames // 32),
        seconds=seconds_each * len(clips),
    )


@given(
    num_clips=st.integers(0, 300),
    num_workers=st.integers(1, 9),
    frames_each=st.integers(1, 500),
    seconds_each=st.floats(0.001, 100),
)
def test_every_clip_is_in_one_task(
    num_clips: int, num_workers: int, frames_each: int, seconds_each: float
) -> None:
    planned = plan_of(num_clips)
    chunks = Chunks(planned, seconds=60)
    given_out: list[PlannedClip] = []
    while chunks:
        clips, num_deaths = chunks.next(num_workers=num_workers)
        assert clips
        assert num_deaths == 0
        given_out += clips
        chunks.learn(took(clips, frames_each=frames_each, seconds_each=seconds_each))
    assert given_out == planned


def test_a_task_is_as_long_as_asked_for_and_the_last_ones_are_shorter() -> None:
    chunks = Chunks(plan_of(10_000), seconds=60)
    sizes = []
    while chunks:
        clips, _ = chunks.next(num_workers=4)
        chunks.learn(took(clips, frames_each=64, seconds_each=0.5))
        sizes.append(len(clips))
    assert sizes[0] == 8  # nothing is known yet
    assert set(sizes[1:70]) == {120}
    assert sizes == [8, *sorted(sizes[1:], reverse=True)]
    assert sizes[-2] == 2  # at least four batches of 32 frames: what the last one is padded with is little


def test_clips_that_may_have_killed_a_worker_come_last() -> None:
    planned = plan_of(3)
    chunks = Chunks(planned, seconds=60)
    first, _ = chunks.next(num_workers=1)
    chunks.again(first, 1)
    rest, _ = chunks.next(num_workers=1)
    assert (*first, *rest) == tuple(planned)
    assert chunks.next(num_workers=1) == (first, 1)
    assert not chunks
