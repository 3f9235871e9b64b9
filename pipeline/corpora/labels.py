"""A corpus of one's own as a CSV: which files are clips, with any columns of a manifest."""

from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.corpora.files import Corpus, find_faults
from pipeline.corpora.splits import SPLIT_NAMES
from pipeline.errors import ManifestError
from pipeline.manifest import read_table, report_faults
from pipeline.manifest.clips import clip_of_row
from pipeline.manifest.rules import Problems, check_cells
from pipeline.manifest.sources import Fault, fault_of

_TARGETS = ("label", "caption", "value", "frame_labels", "questions")


def labels_corpus(path: Path, folder: Path, *, group_column: str | None = None) -> Corpus:
    """The clips of a CSV (or .parquet) with the column `source` and any other of a manifest's.

    Several rows of a source are several clips, by time. Without a column for them, ids are "".
    Without a split, a clip has that of its top folder if all sources lie in folders of splits, else "".
    Without any target column, the label is the folder that the source lies in. `group_column` is the
    column that says what belongs together. Files that are not what their names say are left out with a
    warning; these are the corpus's `missing`.

    Raises ManifestError listing every problem with its line, TextFileError for a CSV that is no text.
    """
    problems = Problems(path, noun="row" if path.suffix == ".parquet" else "line")
    table = read_table(
        path, problems, required=("source",), names={group_column: "group"} if group_column else None
    )
    check_cells(table, problems, required=("source",))
    rows = table.to_pylist()
    has_targets = any(row[name] for row in rows for name in _TARGETS)
    _check_rows(rows, folder, problems, has_targets=has_targets)
    problems.raise_if_any()
    if not rows:
        raise ManifestError(f"{path} names no clips.")
    sources = [tuple(row["source"].split("|")) for row in rows]
    splits = [_top_split(item) for item in sources]
    clips = []
    for row, item, split in zip(rows, sources, splits, strict=True):
        row["clip_id"] = row["clip_id"] or ""
        row["split"] = SPLIT_NAMES[row["split"].lower()] if row["split"] else split if all(splits) else ""
        row["label"] = row["label"] if has_targets else PurePosixPath(item[0]).parent.name or None
        clips.append(clip_of_row(**row))
    bad = find_faults(folder, dict.fromkeys(source for clip in clips for source in clip.sources))
    return Corpus(tuple(clip for clip in clips if bad.keys().isdisjoint(clip.sources)), tuple(bad))


def _check_rows(rows: list[dict[str, Any]], folder: Path, problems: Problems, *, has_targets: bool) -> None:
    """Report what is wrong between rows, and between a row and the disk."""
    seen: dict[tuple[str, Any], int] = {}
    faults: list[tuple[int, str, Fault]] = []
    for index, row in enumerate(rows):
        line = int(problems.rows[index])
        if row["source"] is None:
            continue
        if has_targets and not any(row[name] for name in _TARGETS):
            problems.add(f"needs a source and a label (or one of {', '.join(_TARGETS[1:])}).", index)
        if row["split"] and row["split"].lower() not in SPLIT_NAMES:
            problems.add(f"split {row['split']!r} is unknown. Known: {', '.join(SPLIT_NAMES)}.", index)
        span = (row["source"], row["start_seconds"], row["end_seconds"])
        if (first := seen.setdefault(("source", span), line)) != line:
            problems.add(f"{row['source']} is there twice, first in {problems.noun} {first}.", index)
        if row["clip_id"] and (first := seen.setdefault(("clip_id", row["clip_id"]), line)) != line:
            problems.add(f"clip_id {row['clip_id']!r} is already in {problems.noun} {first}.", index)
        for source in filter(None, row["source"].split("|")):
            if fault := fault_of(folder, source):
                faults.append((index, str(folder / source), fault))
    report_faults(faults, problems)


def _top_split(sources: tuple[str, ...]) -> str:
    parts = PurePosixPath(sources[0]).parts
    return SPLIT_NAMES.get(parts[0].lower(), "") if len(parts) > 1 else ""
