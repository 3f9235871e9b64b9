"""How far an extraction is, as its caller is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

StepName = Literal["read sources", "repack", "extract", "extract damaged clips"]


@dataclass(frozen=True)
class Progress:
    """How far one step of an extraction is: reading sources for their digests, repacking, or computing."""

    step: StepName
    num_done: int  # bytes of sources, or clips
    num_total: int
    num_frames: int = 0  # computed so far
    num_bytes: int = 0  # of the rows computed so far, before compression


OnProgress = Callable[[Progress], object]


def ignore_progress(_: Progress) -> None:
    """For a caller who does not want to know."""


def counter(on_progress: OnProgress, step: StepName, *, num_total: int) -> Callable[..., None]:
    """A function that adds (num_done, num_frames, num_bytes) to what was done, and tells `on_progress`."""
    done = [0, 0, 0]

    def add(num_done: int, num_frames: int = 0, num_bytes: int = 0) -> None:
        for place, count in enumerate((num_done, num_frames, num_bytes)):
            done[place] += count
        on_progress(Progress(step, done[0], num_total, done[1], done[2]))

    return add
