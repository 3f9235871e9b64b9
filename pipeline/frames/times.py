"""When frames are shown, from the times that are stored with them: good times stay, bad ones are mended.

Times in milliseconds of a video at 10 fps, as read and as mended:

    a repeated time      0 100 100 300 400         0 100 200 300 400
    one far ahead        0 100 9000 300 400        0 100 200 300 400
    none                 0 100 - - 400             0 100 200 300 400
    a clock set back     0 100 200 0 100           0 100 200 300 400      joined files, a clock that wrapped
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")

AHEAD = 8  # frames that are looked at before a time is believed

Ticks = int | Fraction


def mended(
    frames: Iterable[tuple[int | None, T]], *, time_base: Fraction, rate: Fraction | None
) -> Iterator[tuple[float, T]]:
    """(seconds, frame) for each (pts, frame) in order of presentation; seconds increase strictly, from 0.

    `pts` count units of `time_base` seconds. `rate`, in frames a second, gives the distance between frames
    where no two of them have times. Reads `AHEAD` frames ahead of the one that it yields.

    Raises ValueError for frames that have neither times nor a rate.
    """
    clock = _Clock(1 / (rate * time_base) if rate else None)
    numerator, denominator = time_base.as_integer_ratio()  # a Fraction costs more than all else here
    source, window = iter(frames), deque[tuple[int | None, T]]()
    zero: Ticks | None = None
    while True:
        while len(window) <= AHEAD and (item := next(source, None)) is not None:
            window.append(item)
        if not window:
            return
        ticks = clock.time([pts for pts, _ in window])
        zero = ticks if zero is None else zero
        yield float((ticks - zero) * numerator / denominator), window.popleft()[1]


class _Clock:
    """Tells the times of frames one after the other."""

    def __init__(self, step: Ticks | None) -> None:
        self._step = step  # from one frame to the next
        self._last: Ticks | None = None  # the time that was told last
        self._was_good = False  # and whether it was the frame's own
        self._offset: Ticks = 0  # of a clock that was set back

    def time(self, times: Sequence[int | None]) -> Ticks:
        """The time of the frame whose own is times[0]; those of the frames after it follow."""
        last, own = self._last, times[0]
        if last is not None and own is not None and last < own <= min(t for t in times if t is not None):
            return self._tell(own, is_good=True)  # nearly always; the rest would say the same
        if last is None:
            last = min((t for t in times if t is not None), default=0) - 1
        shown = [t if t is None or t > last else t + self._offset for t in times]
        later = [t for t in shown[1:] if t is not None]
        if shown[0] is not None and shown[0] <= last and 2 * sum(t > last for t in later) < len(later):
            self._offset += last + self._known_step() - shown[0]
            return self._tell(last + self._known_step(), is_good=False)
        good = (
            (i, t)
            for i, t in enumerate(shown)
            if t is not None and t > last and _leads(t, shown[i + 1 :], last)
        )
        following, next_good = next(good, (None, 0))
        if following == 0:
            return self._tell(next_good, is_good=True)
        if following is None:
            return self._tell(0 if self._last is None else last + self._known_step(), is_good=False)
        if self._last is None:
            return self._tell(next_good - following * self._known_step(), is_good=False)
        return self._tell(last + Fraction(next_good - last) / (following + 1), is_good=False)

    def _known_step(self) -> Ticks:
        if self._step is None:
            raise ValueError("it has neither presentation times nor a frame rate")
        return self._step

    def _tell(self, ticks: Ticks, *, is_good: bool) -> Ticks:
        if is_good and self._was_good and self._last is not None:
            self._step = ticks - self._last
        self._last, self._was_good = ticks, is_good
        return ticks


def _leads(time: Ticks, later: Sequence[Ticks | None], last: Ticks) -> bool:
    """Whether at most one of the later frames has a time between `last` and `time`.

    If two or more have one, it is more likely that `time` is wrong than that they are.
    """
    return sum(t is not None and last < t < time for t in later) < 2


def in_order(frames: Iterable[tuple[int | None, T]]) -> Iterator[tuple[int | None, T]]:
    """The same frames with their times sorted; a time moves by at most `AHEAD` frames.

    For AVI, which stores times of decoding: they are the times of presentation in another order.
    """
    times, waiting = list[int](), deque[T]()
    for pts, frame in frames:
        waiting.append(frame)
        if pts is not None:
            heapq.heappush(times, pts)
        if len(waiting) > AHEAD:
            yield heapq.heappop(times) if times else None, waiting.popleft()
    for frame in waiting:
        yield heapq.heappop(times) if times else None, frame
