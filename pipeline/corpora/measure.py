"""A look at every clip of a manifest: how many frames it gives, of which size, or why it can't be read."""

import csv
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TypeVar

from pipeline.contract import Preprocessing, Sampling
from pipeline.errors import DecodeError, error_text
from pipeline.frames import ClipInfo, Range, clip_range, probe
from pipeline.manifest import Clip, fault_of
from pipeline.settings.extract import Limits
from pipeline.system.children import Crash, in_child
from pipeline.system.files import write_atomically

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Measured:
    """What a look at a clip showed: either what it will give, or why it can't be read."""

    clip_id: str
    info: ClipInfo | None = None
    problem: str = ""


def measure_clips(
    clips: Iterable[Clip],
    *,
    root: Path,
    sampling: Sampling,
    limits: Limits,
    preprocessing: Preprocessing | None = None,
    num_threads: int,
) -> Iterator[Measured]:
    """Open each clip, read the times of its frames and decode the first one; in the order of the clips.

    Sources are relative to `root`. A clip whose source is missing, damaged, above the limits or too small
    for the preprocessing gives a problem, not an error.
    """
    clips = list(clips)
    measure = functools.partial(
        _measure, root=root, sampling=sampling, limits=limits, preprocessing=preprocessing
    )
    for clip, found in zip(clips, in_child(measure, clips, num_threads=num_threads), strict=True):
        if isinstance(found, Crash):
            yield Measured(clip.clip_id, problem=f"its decoder was ended {found.ending}")
        else:
            yield found


def _measure(
    clip: Clip, *, root: Path, sampling: Sampling, limits: Limits, preprocessing: Preprocessing | None
) -> Measured:
    def info_of(files: Range) -> ClipInfo:
        return probe(**files, sampling=sampling, limits=limits, preprocessing=preprocessing)

    found = readable(clip, root=root, read=info_of)
    if isinstance(found, str):
        return Measured(clip.clip_id, problem=found)
    return Measured(clip.clip_id, found)


def readable(clip: Clip, *, root: Path, read: Callable[[Range], Found]) -> Found | str:
    """What `read` finds in a clip's files below `root`; or why they can't be read, in a sentence."""
    for source in clip.sources:
        if fault := fault_of(root, source):
            return fault.sentence(root / source)
    try:
        return read(clip_range(clip, root=root))
    except (DecodeError, OSError) as error:
        return error_text(error)


def write_measured(path: Path, rows: Iterable[Measured]) -> None:
    """Write a CSV: clip_id, the fields of `ClipInfo` (empty for a broken clip), problem."""
    names = [field.name for field in fields(ClipInfo)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip_id", *names, "problem"])
    for row in rows:
        writer.writerow([row.clip_id, *(astuple(row.info) if row.info else [""] * len(names)), row.problem])
    write_atomically(path, text.getvalue().encode(errors="backslashreplace"))
