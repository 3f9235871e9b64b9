"""A survey of a corpus: some clips of each class and split are opened, for a few of their frames."""

import bisect
import functools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.contract import Sampling
from pipeline.corpora import readable
from pipeline.frames import ClipInfo, Range, probe, read_frames
from pipeline.manifest import Clip
from pipeline.report.look.alike import LOOK_LENGTH, look_of
from pipeline.report.page.pictures import strip_of
from pipeline.settings.extract import Limits
from pipeline.system.children import Crash, in_child

_MAX_OPENED = 20_000  # clips, if nobody asks for another number

_SAMPLING = Sampling(max_frames=8)
_STRIP_FRAMES, _STRIP_HEIGHT = 4, 64  # in pixels

Cell = tuple[str, str]  # a class ("" where clips have none) and a split


@dataclass(frozen=True, slots=True)
class Seen:
    """A clip that was opened: what it showed, or why it can't be read."""

    clip: Clip
    info: ClipInfo | None = None  # of all its frames
    strip: bytes = b""  # a picture of some frames
    look: np.ndarray = field(default_factory=lambda: np.zeros((2, LOOK_LENGTH), np.float32))  # see `look_of`
    problem: str = ""

    @property
    def frames_per_second(self) -> float | None:
        """The mean rate; None for a single frame."""
        return (self.info.num_frames - 1) / self.info.seconds if self.info and self.info.seconds else None

    @property
    def duration_seconds(self) -> float | None:
        """From the first frame to the end of the last; None for a single frame."""
        rate = self.frames_per_second
        return self.info.num_frames / rate if self.info and rate else None


def classes_of(clip: Clip) -> tuple[str, ...]:
    """The clip's labels, or else its frame labels, each once; () where it has neither."""
    return clip.labels or tuple(dict.fromkeys(item.label for item in clip.frame_labels))


def cell_of(clip: Clip) -> Cell:
    """The clip's first class, and its split."""
    return next(iter(classes_of(clip)), ""), clip.split


def choose(clips: Iterable[Clip], *, at_most: int | None = None) -> list[Clip]:
    """At most so many clips of each class and split, evenly spaced. Default: all, or 20,000 of more."""
    cells = defaultdict(list)
    for clip in clips:
        cells[cell_of(clip)].append(clip)
    if at_most is None:
        at_most = _fair_limit([len(cell) for cell in cells.values()], total=_MAX_OPENED)
    chosen = []
    for cell in cells.values():
        places = np.linspace(0, len(cell) - 1, min(at_most, len(cell))).round().astype(int)
        chosen += [cell[place] for place in places]
    return chosen


def survey_clips(
    clips: Iterable[Clip],
    *,
    root: Path,
    limits: Limits,
    num_threads: int,
) -> Iterator[Seen]:
    """Open each clip, in order, for at most 8 frames that are spread over it; sources are relative to `root`.

    A clip that is missing, damaged or above the limits has a problem instead.
    """
    clips = list(clips)
    found = in_child(functools.partial(_look_at, root=root, limits=limits), clips, num_threads=num_threads)
    for clip, seen in zip(clips, found, strict=True):
        if isinstance(seen, Crash):
            yield Seen(clip, problem=f"its decoder was ended {seen.ending}")
        else:
            yield seen


def _look_at(clip: Clip, *, root: Path, limits: Limits) -> Seen:
    def see(files: Range) -> Seen:
        info = probe(**files, sampling=Sampling(), limits=limits)
        batches = read_frames(**files, sampling=_SAMPLING, batch_size=1, limits=limits)
        frames = [batch.pixels[0] for batch in batches]
        return Seen(clip, info, _strip(frames), look_of(frames))

    found = readable(clip, root=root, read=see)
    return Seen(clip, problem=found) if isinstance(found, str) else found


def _strip(frames: Sequence[np.ndarray]) -> bytes:
    """Some of the frames side by side, as WebP."""
    places = np.linspace(0, len(frames) - 1, min(_STRIP_FRAMES, len(frames))).round().astype(int)
    return strip_of([Image.fromarray(frames[place]) for place in places], height=_STRIP_HEIGHT)[0]


def _fair_limit(counts: Sequence[int], *, total: int) -> int:
    """The largest limit of each count under which their sum is at most `total`; at least 1."""
    limits = range(1, max(counts) + 1)
    fitting = bisect.bisect_right(limits, total, key=lambda limit: sum(min(count, limit) for count in counts))
    return max(1, fitting)
