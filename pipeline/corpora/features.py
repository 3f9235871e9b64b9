"""Labels and splits beside features: a manifest, or as in the layouts of MS-TCN and ActionFormer.

MS-TCN (https://github.com/yabufarha/ms-tcn): mapping.txt, groundTruth/<clip>.txt with a label a frame, and
splits/<split>.split<1, 2, ...>.bundle with `<clip>.txt` a line. ActionFormer
(https://github.com/happyharrycn/actionformer_release): a JSON file with {"database": {clip: {"subset": ...,
"duration": seconds, "annotations": [{"segment": [start, end], "label": ...}]}}}.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.corpora.files import official_list
from pipeline.corpora.mstcn import frame_intervals
from pipeline.corpora.splits import carve_val
from pipeline.errors import ManifestError, UnknownTimesError, few
from pipeline.manifest import Clip, FrameLabel, read_manifest, split_named, write_manifest
from pipeline.store.upkeep.dump import file_stem
from pipeline.store.upkeep.foreign import clip_id_of
from pipeline.system.files import write_json
from pipeline.system.text_files import read_lines

log = logging.getLogger(__name__)

MANIFEST = "manifest.csv"  # beside features that were dumped
BACKGROUND = "background"  # the label of frames that have none
_HINT = "It is part of the layout of MS-TCN."


@dataclass(frozen=True)
class Labelled:
    """The clips of a layout with their labels and splits, and what it says of their features."""

    clips: tuple[Clip, ...]
    lengths: Mapping[str, int] = field(default_factory=dict)  # features of a clip
    durations: Mapping[str, float] = field(default_factory=dict)  # of a clip in seconds


def labels_beside(
    path: Path, files: Mapping[str, str], *, split: int, rate: float | None, val_share: float, seed: int = 0
) -> Labelled | None:
    """The labels of the clips whose features are in a folder or file; None where there are none.

    `files` has the source of each clip, by its id. MS-TCN's labels come at `rate` a second, in the split
    `split`. Where no clip is in val, `val_share` of train are.

    Raises ManifestError for lists that are missing or damaged, and for clips without labels;
    UnknownTimesError where labels need a rate.
    """
    own = path / MANIFEST if path.is_dir() else path.with_suffix(".csv")
    if own.exists():
        found = _manifest(own, files)
    elif (path / "groundTruth").is_dir():
        if rate is None:
            raise UnknownTimesError(f"{path} has a label for each frame, and does not say when it is shown.")
        found = _mstcn(path, files, split=split, rate=rate)
    elif database := _database(path):
        found = _actionformer(database, files)
    else:
        return None
    if unlabelled := sorted(files.keys() - {clip.clip_id for clip in found.clips}):
        raise ManifestError(
            f"{len(unlabelled)} clips have features and are in no list of {path}: {few(unlabelled)}. Take"
            " their features out, or add them to the lists."
        )
    clips = found.clips
    if all(clip.split != "val" for clip in clips):
        clips = tuple(carve_val(clips, share=val_share, seed=seed, by_class=False))
    return Labelled(clips, found.lengths, found.durations)


def _manifest(path: Path, files: Mapping[str, str]) -> Labelled:
    clips = {clip.clip_id: clip for clip in read_manifest(path)}
    found = (replace(clips[name], sources=(files[name],)) for name in _with_features(clips, files, path))
    return Labelled(tuple(found))


def _mstcn(folder: Path, files: Mapping[str, str], *, split: int, rate: float) -> Labelled:
    mapping = read_lines(official_list(folder / "mapping.txt", hint=_HINT))
    classes = {text.partition(" ")[2] for _, text in mapping}
    clips, lengths = [], {}
    for part in ("train", "val", "test"):
        bundle = folder / f"splits/{part}.split{split}.bundle"
        if part == "val" and not bundle.exists():
            continue
        names = [
            clip_id_of(PurePosixPath(text).stem) for _, text in read_lines(official_list(bundle, hint=_HINT))
        ]
        for name in _with_features(names, files, bundle):
            truth = folder / f"groundTruth/{file_stem(name)}.txt"
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


def write_labels(folder: Path, clips: Sequence[Clip], times: Mapping[str, np.ndarray], *, form: str) -> None:
    """Write labels and splits of a manifest's clips beside features that were dumped as `form` says.

    `times` has the times (T,) of the frames of each clip with features, by its id. Raises ManifestError where
    MS-TCN's or ActionFormer's own files can't hold the labels, or would lack those of a clip.
    """
    if form not in _WRITES:
        if clips:
            write_manifest(folder / MANIFEST, clips)
        return
    if unlabelled := sorted(times.keys() - {clip.clip_id for clip in clips}):
        raise ManifestError(
            f"{len(unlabelled)} clips have features, and the manifest does not have them: {few(unlabelled)}."
        )
    _WRITES[form](folder, [clip for clip in clips if clip.clip_id in times], times)


def _write_mstcn(folder: Path, clips: Sequence[Clip], times: Mapping[str, np.ndarray]) -> None:
    (folder / "groundTruth").mkdir()
    (folder / "splits").mkdir()
    classes: dict[str, int] = {}
    splits = defaultdict(list)
    for clip in clips:
        if clip.overlap or len(clip.labels) > 1:
            raise ManifestError(f"{clip.clip_id} has several labels at a time, and MS-TCN's layout has one.")
        stem = file_stem(clip.clip_id)
        labels = [clip.label if not clip.frame_labels and clip.label else BACKGROUND] * len(
            times[clip.clip_id]
        )
        for each in clip.frame_labels:
            first, end = np.searchsorted(times[clip.clip_id], (each.start_seconds, each.end_seconds))
            labels[first:end] = [each.label] * (end - first)
        for label in labels:
            classes.setdefault(label, len(classes))
        splits[clip.split].append(f"{stem}.txt\n")
        (folder / f"groundTruth/{stem}.txt").write_text("".join(f"{label}\n" for label in labels))
    (folder / "mapping.txt").write_text("".join(f"{number} {label}\n" for label, number in classes.items()))
    for split, names in splits.items():
        (folder / f"splits/{split}.split1.bundle").write_text("".join(names))


def _write_actionformer(folder: Path, clips: Sequence[Clip], times: Mapping[str, np.ndarray]) -> None:
    classes: dict[str, int] = {}
    database = {}
    for clip in clips:
        seconds = times[clip.clip_id]
        step = float(np.ptp(seconds)) / (len(seconds) - 1) if len(seconds) > 1 else 1.0
        duration = float(seconds[-1]) + step
        actions = clip.frame_labels or [FrameLabel(0.0, duration, label) for label in clip.labels]
        database[clip.clip_id] = {
            "subset": clip.split,
            "duration": duration,
            "fps": 1 / step,
            "annotations": [
                {
                    "segment": [each.start_seconds, each.end_seconds],
                    "label": each.label,
                    "label_id": classes.setdefault(each.label, len(classes)),
                }
                for each in actions
            ],
        }
    (folder / "annotations").mkdir()
    write_json(folder / "annotations/database.json", {"version": "framecache", "database": database})


_WRITES = {"mstcn": _write_mstcn, "actionformer": _write_actionformer}
