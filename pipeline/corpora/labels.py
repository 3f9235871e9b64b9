"""A corpus of one's own as a CSV: which files are clips, with any columns of a manifest."""

from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.corpora.files import Corpus, find_faults
from pipeline.corpora.folder import name_clips
from pipeline.errors import ManifestError
from pipeline.manifest import SPLITS, Clip, Fault, fault_of, fault_sentences, read_table, split_named
from pipeline.manifest.clips import TARGETS, clip_of_row
from pipeline.manifest.rules import Problems, check_cells


def labels_corpus(path: Path, folder: Path, *, group_column: str | None = None) -> Corpus:
    """The clips of a CSV (or .parquet) with the column `source` and any other column of a manifest.

    Several rows of one source are several clips, by time. Clips without a clip_id have the id "". Clips
    without a split have that of their top folder if all sources lie in folders of splits, else "". If no
    target column has a value, the label is the folder that the source lies in. `group_column` names the
    column that says which clips belong together. Files that are not what their names say are left out with a
    warning and are the corpus's `faulty` ones.

    Raises ManifestError listing every problem with its line, TextFileError for a CSV that is no text.
    """
    table, problems = read_table(
        path,
        required=("source",),
        names={group_column: "group"} if group_column else None,
        noun="row" if path.suffix == ".parquet" else "line",
    )
    check_cells(table, problems, required=("source",))
    rows = table.to_pylist()
    has_targets = any(row[name] for row in rows for name in TARGETS)
    _check_rows(rows, folder, problems, has_targets=has_targets)
    problems.raise_if_any()
    if not rows:
        raise ManifestError(f"{path} names no clips.")
    sources = [tuple(row["source"].split("|")) for row in rows]
    splits = [_top_split(item) for item in sources]
    clips = []
    for row, item, split in zip(rows, sources, splits, strict=True):
        row["clip_id"] = row["clip_id"] or ""
        row["split"] = split_named(row["split"] or "") or (split if all(splits) else "")
        row["label"] = row["label"] if has_targets else PurePosixPath(item[0]).parent.name or None
        clips.append(clip_of_row(row))
    bad = find_faults(folder, dict.fromkeys(source for clip in clips for source in clip.sources))
    usable = (clip for clip in clips if bad.keys().isdisjoint(clip.sources))
    return Corpus(tuple(usable), faulty=tuple(bad))


def table_clips(path: Path) -> list[Clip]:
    """The clips of a CSV (or .parquet) with the column `source` and any other column of a manifest.

    Their sources are as in the table, relative to its folder, and nobody looks whether they are there. Clips
    without a clip_id get one. Raises ManifestError listing every problem with its line, TextFileError for a
    CSV that is no text.
    """
    noun = "row" if path.suffix == ".parquet" else "line"
    table, problems = read_table(path, required=("source",), noun=noun)
    check_cells(table, problems, required=("source",))
    problems.raise_if_any()
    rows = table.to_pylist()
    return name_clips([clip_of_row({**row, "clip_id": row["clip_id"] or "", "split": ""}) for row in rows])


def _check_rows(rows: list[dict[str, Any]], folder: Path, problems: Problems, *, has_targets: bool) -> None:
    """Report rows that contradict each other, or whose sources can't be read."""
    seen: dict[tuple[str, Any], int] = {}
    faults: dict[str, Fault] = {}
    indices: dict[str, int] = {}
    for index, row in enumerate(rows):
        line = int(problems.rows[index])
        if row["source"] is None:
            continue
        if has_targets and not any(row[name] for name in TARGETS):
            problems.add(f"needs a source and a label (or one of {', '.join(TARGETS[1:])}).", index)
        if row["split"] and not split_named(row["split"]):
            names = ", ".join(name for names in SPLITS.values() for name in names)
            problems.add(f"split {row['split']!r} is unknown. Available: {names}.", index)
        span = (row["source"], row["start_seconds"], row["end_seconds"])
        if (first := seen.setdefault(("source", span), line)) != line:
            problems.add(f"{row['source']} is repeated: it is already in {problems.noun} {first}.", index)
        if row["clip_id"] and (first := seen.setdefault(("clip_id", row["clip_id"]), line)) != line:
            problems.add(f"clip_id {row['clip_id']!r} is already in {problems.noun} {first}.", index)
        for source in filter(None, row["source"].split("|")):
            path = str(folder / source)
            if path not in indices and (fault := fault_of(folder, source)):
                faults[path], indices[path] = fault, index
    for path, sentence in fault_sentences(faults).items():
        problems.add(sentence, indices[path])


def _top_split(sources: tuple[str, ...]) -> str:
    parts = PurePosixPath(sources[0]).parts
    return split_named(parts[0]) or "" if len(parts) > 1 else ""
