"""Labels and splits beside features of other programs, in the layouts of MS-TCN and ActionFormer.

MS-TCN (https://github.com/yabufarha/ms-tcn): mapping.txt, groundTruth/<clip>.txt with a label a frame, and
splits/<split>.split<1, 2, ...>.bundle with `<clip>.txt` a line. ActionFormer
(https://github.com/happyharrycn/actionformer_release): a JSON file with {"database": {clip: {"subset": ...,
"duration": seconds, "annotations": [{"segment": [start, end], "label": ...}]}}}.
"""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.corpora.files import official_list
from pipeline.corpora.mstcn import frame_intervals
from pipeline.corpora.splits import carve_val
from pipeline.errors import ManifestError, UnknownTimesError, few
from pipeline.manifest import Clip, FrameLabel, split_named
from pipeline.system.text_files import read_lines

log = logging.getLogger(__name__)

_HINT = "It is part of the layout of MS-TCN."


@dataclass(frozen=True)
class Labelled:
    """The clips of a layout with their labels and splits, and what it says of their features."""

    clips: tuple[Clip, ...]
    lengths: Mapping[str, int] = field(default_factory=dict)  # features of a clip
    durations: Mapping[str, float] = field(default_factory=dict)  # of a clip in seconds


def labels_beside(
    folder: Path, files: Mapping[str, str], *, split: int, rate: float | None, val_share: float, seed: int = 0
) -> Labelled | None:
    """The labels of the clips whose features are in a folder; None where it has neither layout.

    `files` has the source of each clip, by its id. MS-TCN's labels come at `rate` a second, in the split
    `split`. Where no clip is in val, `val_share` of train are.

    Raises ManifestError for lists that are missing or damaged, and for clips without labels;
    UnknownTimesError where labels need a rate.
    """
    if (folder / "groundTruth").is_dir():
        if rate is None:
            raise UnknownTimesError(
                f"{folder} has a label for each frame, and does not say when it is shown."
            )
        found = _mstcn(folder, files, split=split, rate=rate)
    elif path := _database(folder):
        found = _actionformer(path, files)
    else:
        return None
    if unlabelled := sorted(files.keys() - {clip.clip_id for clip in found.clips}):
        raise ManifestError(
            f"{len(unlabelled)} clips have features and are in no list of {folder}: {few(unlabelled)}. Take"
            " their features out, or add them to the lists."
        )
    clips = found.clips
    if all(clip.split != "val" for clip in clips):
        clips = tuple(carve_val(clips, share=val_share, seed=seed, by_class=False))
    return Labelled(clips, found.lengths, found.durations)


def _mstcn(folder: Path, files: Mapping[str, str], *, split: int, rate: float) -> Labelled:
    mapping = read_lines(official_list(folder / "mapping.txt", hint=_HINT))
    classes = {text.partition(" ")[2] for _, text in mapping}
    clips, lengths = [], {}
    for part in ("train", "val", "test"):
        bundle = folder / f"splits/{part}.split{split}.bundle"
        if part == "val" and not bundle.exists():
            continue
        names = [PurePosixPath(text).stem for _, text in read_lines(official_list(bundle, hint=_HINT))]
        for name in _with_features(names, files, bundle):
            truth = folder / f"groundTruth/{name}.txt"
            intervals = frame_intervals(truth, classes, fps=rate)
            lengths[name] = len(list(read_lines(truth)))
            clips.append(Clip(name, (files[name],), part, frame_labels=intervals))
    return Labelled(tuple(clips), lengths)


def _database(folder: Path) -> Path | None:
    """The first JSON file with a database of annotations."""
    for path in sorted(folder.rglob("*.json")) if folder.is_dir() else ():
        if '"database"' in path.read_text(errors="replace"):
            return path
    return None


def _actionformer(path: Path, files: Mapping[str, str]) -> Labelled:
    clips, durations = [], {}
    try:
        database: dict[str, Any] = json.loads(path.read_bytes())["database"]
        for name in _with_features(database, files, path):
            entry = database[name]
            split = split_named(str(entry["subset"]))
            if split is None:
                raise ManifestError(f"{path}: the subset {entry['subset']!r} of {name} is no split.")
            labels = tuple(
                sorted(
                    (
                        FrameLabel(float(each["segment"][0]), float(each["segment"][1]), str(each["label"]))
                        for each in entry.get("annotations", ())
                    ),
                    key=lambda label: (label.start_seconds, label.end_seconds),
                )
            )
            whole = "|".join(dict.fromkeys(label.label for label in labels)) or None
            clips.append(Clip(name, (files[name],), split, label=whole, frame_labels=labels))
            if "duration" in entry:
                durations[name] = float(entry["duration"])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{path} is no database of annotations: {error!r}.") from None
    if clips and all(clip.split != "train" for clip in clips):  # as in THUMOS14, whose val is trained on
        log.info("No clip is in train: those of val are.")
        clips = [replace(clip, split="train") if clip.split == "val" else clip for clip in clips]
    return Labelled(tuple(clips), durations=durations)


def _with_features(names: Collection[str], files: Mapping[str, str], path: Path) -> list[str]:
    """The clips of a list that have features; the others are told of."""
    if missing := [name for name in names if name not in files]:
        log.warning("%d clips of %s have no features and are left out: %s.", len(missing), path, few(missing))
    return [name for name in names if name in files]
