"""A corpus of one's own: FOLDER/<class>/<clip>, or any files that a CSV gives labels."""

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.corpora.files import is_clip
from pipeline.corpora.splits import split_classes
from pipeline.errors import ManifestError
from pipeline.manifest import SPLITS, Clip

log = logging.getLogger(__name__)


def folder_corpus(folder: Path, *, labels: Path | None, shares: Sequence[float], seed: int) -> list[Clip]:
    """Clips of FOLDER/<class>/<clip> or FOLDER/<split>/<class>/<clip>, or those that the CSV `labels` names.

    Where top folders are not splits, each class is split by `shares` of train, val and test.

    Raises ManifestError, listing every problem.
    """
    clips = _clips(_read_labels(labels, folder) if labels else _find_labels(folder))
    return clips if all(clip.split for clip in clips) else split_classes(clips, shares=shares, seed=seed)


def _read_labels(path: Path, folder: Path) -> dict[Path, str]:
    """{source: label} of a CSV. Raises ManifestError listing every problem with its line."""
    labels: dict[Path, str] = {}
    problems = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != {"source", "label"}:
            raise ManifestError(f"{path}: the first line must be 'source,label'.")
        for row in reader:
            source = Path(row["source"] or "")
            if not row["source"] or not row["label"]:
                problems.append(f"line {reader.line_num}: needs a source and a label.")
            elif source in labels:
                problems.append(f"line {reader.line_num}: {source} is there twice.")
            elif not (folder / source).exists():
                problems.append(f"line {reader.line_num}: {folder / source} does not exist.")
            labels[source] = row["label"] or ""
    if problems:
        raise ManifestError("\n  ".join([f"{path}: {len(problems)} problem(s)", *problems]))
    if not labels:
        raise ManifestError(f"{path} names no clips.")
    return labels


def _find_labels(folder: Path) -> dict[Path, str]:
    """{source: label} of FOLDER/<class>/<clip>, or of FOLDER/<split>/<class>/<clip>."""
    has_splits = any((folder / split).is_dir() for split in SPLITS)
    tops = [folder / split for split in SPLITS if (folder / split).is_dir()] if has_splits else [folder]
    labels: dict[Path, str] = {}
    loose: list[Path] = []  # clips outside of class folders
    others: list[Path] = []
    for top in tops:
        for entry in _visible(top):
            if not entry.is_dir():
                (loose if is_clip(entry) else others).append(entry)
                continue
            for clip in _visible(entry):
                if is_clip(clip):
                    labels[clip.relative_to(folder)] = entry.name
                else:
                    others.append(clip)
    if loose:
        raise ManifestError(f"{loose[0]} lies in no class folder. Move it into one, or give --labels.")
    if not labels:
        raise ManifestError(
            f"{folder} has no clips. Expected {folder}/<class>/<video, image or image folder>."
        )
    if others:
        log.warning("Left out, neither video nor image: %s", ", ".join(map(str, others)))
    return labels


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _clips(labels: dict[Path, str]) -> list[Clip]:
    """Clips named by their paths; a clip's split is its top folder if all top folders are splits."""
    has_splits = all(len(source.parts) > 1 and source.parts[0] in SPLITS for source in labels)
    names = Counter(source.with_suffix("") for source in labels)
    clips = []
    for source, label in labels.items():
        name = source.with_suffix("")
        clips.append(
            Clip(
                clip_id=(name if names[name] == 1 else source).as_posix(),
                sources=(source.as_posix(),),
                split=source.parts[0] if has_splits else "",
                label=label,
            )
        )
    return clips
