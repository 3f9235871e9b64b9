"""Charades by its official CSV files.

Layout: Charades.zip of https://prior.allenai.org/projects/charades, which has Charades_v1_train.csv,
Charades_v1_test.csv and Charades_v1_classes.txt (`c000 Holding some clothes`). A cell of the column `actions`
is like `c092 11.90 21.20;c147 0.00 12.60`: classes with start and end in seconds, which may overlap. Videos
are <id>.mp4.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.corpora.files import Corpus, clips_by_stem, official_list
from pipeline.corpora.splits import carve_val, free_torn_groups
from pipeline.errors import ManifestError, few
from pipeline.manifest import Clip, FrameLabel
from pipeline.manifest.rules import Problems
from pipeline.system.text_files import read_csv, read_lines

log = logging.getLogger(__name__)

_COLUMNS = ("id", "subject", "scene", "actions")
_HINT = "Unpack Charades.zip and name its folder."
_NUM_CLASSES = 157


def charades_corpus(root: Path, *, lists: Path, val_share: float, seed: int) -> Corpus:
    """The clips of both CSVs. All classes of a clip are its label; its actions are `frame_labels`.

    The subject is the group, and the scene the column meta_scene. There is no val split: `val_share` of the
    subjects in train become val. Videos without actions are left out: Charades' script for the mAP of clips
    does not count them.

    Raises ManifestError for lists that are missing, or naming every line that is not as published.
    """
    lines = read_lines(official_list(lists / "Charades_v1_classes.txt", hint=_HINT))
    classes = {name: text.strip() for name, _, text in (text.partition(" ") for _, text in lines)}
    videos = clips_by_stem(root)
    clips: list[Clip] = []
    missing: list[str] = []
    idle: list[str] = []
    for split in ("train", "test"):
        path = official_list(lists / f"Charades_v1_{split}.csv", hint=_HINT)
        for clip in _read(path, split=split, classes=classes):
            if not clip.label:
                idle.append(clip.clip_id)
            elif clip.clip_id in videos:
                clips.append(replace(clip, sources=(videos[clip.clip_id],)))
            else:
                missing.append(f"{clip.clip_id}.mp4")
    if idle:
        log.warning("Left out: %d videos without actions: %s.", len(idle), few(idle))
    clips = free_torn_groups(carve_val(clips, share=val_share, seed=seed, by_class=False))
    return Corpus(
        tuple(clips), missing=tuple(missing), num_classes=len(classes), num_classes_published=_NUM_CLASSES
    )


def _read(path: Path, *, split: str, classes: Mapping[str, str]) -> list[Clip]:
    """The clips of a CSV, without sources."""
    problems = Problems(path, noun="line")
    names, rows = read_csv(path, refuse=problems.add_at_row)
    if not set(_COLUMNS) <= set(names):
        raise ManifestError(f"{path}: the first line must name {', '.join(_COLUMNS)}.")
    clips = []
    num_empty = 0
    for line, cells in rows:
        name, subject, scene, text = (cells[names.index(column)].strip() for column in _COLUMNS)
        try:
            actions = list(_actions(text, classes))
        except ValueError:
            problems.add_at_row(f"actions {text!r} is not like c092 11.90 21.20;c147 0.00 12.60.", line)
            continue
        except KeyError as error:
            problems.add_at_row(f"action {error} is not in Charades_v1_classes.txt.", line)
            continue
        lasting = [item for item in actions if item.end_seconds > item.start_seconds]
        num_empty += len(actions) - len(lasting)
        clips.append(
            Clip(
                clip_id=name,
                sources=(),
                split=split,
                group=subject or None,
                label="|".join(dict.fromkeys(item.label for item in actions)) or None,
                frame_labels=tuple(sorted(lasting, key=lambda item: (item.start_seconds, item.end_seconds))),
                meta={"scene": scene} if scene else {},
            )
        )
    problems.raise_if_any()
    if num_empty:
        log.warning("%s: %d actions end when they start, and are in no frame.", path, num_empty)
    return clips


def _actions(text: str, classes: Mapping[str, str]) -> Iterator[FrameLabel]:
    """The actions of a cell. Raises ValueError for another form, KeyError for an unknown class."""
    for action in filter(None, text.split(";")):
        name, start, end = action.split()
        yield FrameLabel(float(start), float(end), classes[name])
