"""Kinetics (400, 600, 700) by its CSVs (https://github.com/cvdfoundation/kinetics-dataset)."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.corpora.files import Corpus, clips_by_stem
from pipeline.corpora.splits import carve_missing_val, free_torn_groups
from pipeline.errors import ManifestError
from pipeline.manifest import SPLITS, Clip, split_named
from pipeline.manifest.rules import Problems
from pipeline.system.text_files import read_csv

log = logging.getLogger(__name__)

_COLUMNS = ("youtube_id", "time_start", "time_end", "split")


def kinetics_corpus(root: Path, *, tables: Sequence[Path], val_share: float, seed: int) -> Corpus:
    """The clips of the CSVs. Their files are named <youtube_id>_<start>_<end>, with times in six digits.

    The files may lie in any folders below `root`. Clips of one YouTube video are a group. If no CSV has a
    test split (its labels were long kept back), val becomes test, and `val_share` of each class's groups in
    train become val.

    Raises ManifestError, listing every problem of a CSV with its line.
    """
    videos = clips_by_stem(root)
    clips, missing = [], []
    seen: dict[str, tuple[Clip, str]] = {}
    for path in tables:
        for clip in _read(path, seen):
            if clip.clip_id in videos:
                clips.append(replace(clip, sources=(videos[clip.clip_id],)))
            else:
                missing.append(clip.clip_id)
    clips = free_torn_groups(carve_missing_val(clips, share=val_share, seed=seed))
    return Corpus(tuple(clips), missing=tuple(missing))


def _read(path: Path, seen: dict[str, tuple[Clip, str]]) -> list[Clip]:
    """The clips of a CSV, without sources. Test splits were first published without labels.

    `seen` has the clips of all CSVs and their places: a repeated row counts once.
    """
    problems = Problems(path, noun="line")
    names, rows = read_csv(path, refuse=problems.add_at_row)
    if not set(_COLUMNS) <= set(names) or len(set(names)) < len(names):
        raise ManifestError(
            f"{path}: the first line must name {', '.join(_COLUMNS)}, and may name label; each once."
        )
    clips = []
    num_repeated = 0
    for line, cells in rows:
        row = dict(zip(names, map(str.strip, cells), strict=True))
        try:
            clip = _clip(row)
        except ValueError as error:
            problems.add_at_row(str(error), line)
            continue
        known, place = seen.setdefault(clip.clip_id, (clip, f"{path}, line {line}"))
        if known is clip:
            clips.append(clip)
        elif known == clip:
            num_repeated += 1
        else:
            problems.add_at_row(f"{clip.clip_id} has another label or split in {place}.", line)
    problems.raise_if_any()
    if num_repeated:
        log.warning("%s: %d rows are repeated and count once.", path, num_repeated)
    return clips


def _clip(row: dict[str, str]) -> Clip:
    """The clip of a row. Raises ValueError that says what is wrong with it."""
    if not row["youtube_id"]:
        raise ValueError("youtube_id is empty.")
    split = split_named(row["split"])
    if split is None:
        raise ValueError(f"split {row['split']!r} is unknown. Available: {', '.join(SPLITS)}.")
    try:
        start, end = (round(float(row[name])) for name in ("time_start", "time_end"))
    except (ValueError, OverflowError):
        raise ValueError("time_start and time_end must be numbers.") from None
    return Clip(
        clip_id=f"{row['youtube_id']}_{start:06d}_{end:06d}",
        sources=(),
        split=split,
        group=row["youtube_id"],
        label=row.get("label") or None,
    )
