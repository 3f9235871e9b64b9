"""Cuts a plan into tasks for several workers."""

import math
from collections import deque
from collections.abc import Sequence

from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result

_FIRST_CLIPS = 8  # of a task, as long as nothing is known of the clips
_MOST_CLIPS = 4096
_LEAST_BATCHES = 4  # of a task: its last one is padded


class Chunks:
    """Cuts the plan into tasks of about `seconds` each, and of less and less towards the end.

    So all workers end at about the same time (guided self-scheduling, Polychronopoulos and Kuck 1987).
    """

    def __init__(self, planned: Sequence[PlannedClip], *, seconds: float) -> None:
        self._planned = planned
        self._seconds = seconds
        self._position = 0
        self._again: deque[tuple[tuple[PlannedClip, ...], int]] = deque()
        self._known = Result()
        self._batch_frames = 0.0

    def __bool__(self) -> bool:
        return self._position < len(self._planned) or bool(self._again)

    def next(self, *, num_workers: int) -> tuple[tuple[PlannedClip, ...], int]:
        """The clips of the next task, and how many workers died of just these. Suspect clips come last."""
        if self._position == len(self._planned):
            return self._again.popleft()
        size = math.ceil((len(self._planned) - self._position) / (2 * num_workers))
        if self._known.num_frames:
            clips_per_frame = self._known.num_clips / self._known.num_frames
            least = _LEAST_BATCHES * self._batch_frames * clips_per_frame
            most = self._seconds * self._known.num_clips / self._known.seconds
            size = math.ceil(min(max(size, least), most, _MOST_CLIPS))
        else:
            size = min(size, _FIRST_CLIPS)
        chunk = tuple(self._planned[self._position : self._position + size])
        self._position += len(chunk)
        return chunk, 0

    def again(self, clips: tuple[PlannedClip, ...], num_deaths: int) -> None:
        """Hand out these clips once more, as one task, when everything else is handed out."""
        self._again.append((clips, num_deaths))

    def learn(self, part: Result) -> None:
        """Learn from a task that has ended how long the next ones may be."""
        self._known.add(part)
        self._batch_frames = max(self._batch_frames, part.num_frames / max(1, part.num_batches))
