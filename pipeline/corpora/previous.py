"""What a manifest keeps when it is built again: ids, splits, and columns that were filled by hand."""

import logging
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import fields, replace
from pathlib import PurePosixPath
from typing import Any

from pipeline.errors import few
from pipeline.manifest import META, Clip

log = logging.getLogger(__name__)

_SOURCE = ("sources", "start_seconds", "end_seconds")
_EMPTY = Clip(clip_id="", sources=(), split="")


def keep_previous(clips: Sequence[Clip], previous: Sequence[Clip], *, faulty: Sequence[str]) -> list[Clip]:
    """`clips`, with the values of their rows in `previous` where the builder has none.

    A row belongs to a clip if it has the same sources and time range, or the same id, or names the same file
    with another suffix. If no clip has a time range, all rows of a source are kept. Rows that belong to no
    clip are left out, but for rows of `faulty` sources, which can't be read on this machine.

    Logs a warning that names the rows left out and the values replaced.
    """
    has_spans = any(clip.start_seconds is not None or clip.end_seconds is not None for clip in clips)
    rows_by_key = defaultdict(list)
    for row in previous:
        for key in _keys(row, has_spans=has_spans):
            rows_by_key[key].append(row)
    num_clips = Counter(key for clip in clips for key in _keys(clip, has_spans=has_spans))
    kept: list[Clip] = []
    used: set[str] = set()
    replaced: list[str] = []
    for clip in clips:
        rows = next(
            (
                rows_by_key[key]
                for key in _keys(clip, has_spans=has_spans)
                if num_clips[key] == 1 and not used.issuperset(row.clip_id for row in rows_by_key[key])
            ),
            [],
        )
        used.update(row.clip_id for row in rows)
        kept += [_merged(clip, row, replaced, has_spans=has_spans) for row in rows] or [clip]
    rest = [row for row in previous if row.clip_id not in used]
    absent = set(faulty)
    unfetched = [row for row in rest if not absent.isdisjoint(row.sources)]
    if gone := [row.clip_id for row in rest if absent.isdisjoint(row.sources)]:
        log.warning("Clips of the manifest that are no longer there (%d): %s.", len(gone), few(gone))
    if replaced:
        log.warning("Values of the manifest that were replaced (%d): %s.", len(replaced), few(replaced))
    return kept + unfetched


def _keys(clip: Clip, *, has_spans: bool) -> list[Hashable]:
    """What a row and its clip have in common; the surest sign is the first."""
    span = (clip.start_seconds, clip.end_seconds) if has_spans else ()
    stems = tuple(PurePosixPath(source).with_suffix("") for source in clip.sources)
    return [(clip.sources, span), *([clip.clip_id] if clip.clip_id else []), (stems, span)]


def _merged(clip: Clip, row: Clip, replaced: list[str], *, has_spans: bool) -> Clip:
    """The row with the values that the builder has; `replaced` is told of values that these replace."""
    said: dict[str, Any] = {
        field.name: getattr(clip, field.name)
        for field in fields(Clip)
        if field.name not in (*_SOURCE, "splits", "meta")
        and getattr(clip, field.name) != getattr(_EMPTY, field.name)
    }
    for name, value in said.items():
        if (before := getattr(row, name)) not in (value, getattr(_EMPTY, name)):
            replaced.append(f"{name} of {row.clip_id} ({before!r} by {value!r})")
    said |= {"splits": {**row.splits, **clip.splits}, "meta": {**row.meta, **clip.meta}}
    for name, before in row.meta.items():
        if before != (value := said["meta"][name]):
            replaced.append(f"{META}{name} of {row.clip_id} ({before!r} by {value!r})")
    if has_spans:
        said |= {"start_seconds": clip.start_seconds, "end_seconds": clip.end_seconds}
    return replace(row, sources=clip.sources, **said)
