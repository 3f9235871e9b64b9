"""A clip: what it shows, and its row in a manifest."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import ManifestError


@dataclass(frozen=True, slots=True)
class FrameLabel:
    """What the frames with start_seconds <= time < end_seconds show."""

    start_seconds: float
    end_seconds: float
    label: str


@dataclass(frozen=True, slots=True)
class Question:
    """What may be asked of a clip, and the right answer."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Clip:
    """One sample and its targets: a stretch of a video, an image, a folder of images or several images."""

    clip_id: str
    sources: tuple[str, ...]  # relative to the corpus root
    split: str  # one of SPLITS, or UNUSED
    start_seconds: float | None = None  # of the source: earlier frames do not belong to the clip
    end_seconds: float | None = None  # exclusive
    group: str | None = None  # never in two splits: a subject, a scene, a source video
    label: str | None = None  # or several, joined by '|': see `labels`
    captions: tuple[str, ...] = ()
    values: tuple[float, ...] = ()  # to be predicted
    frame_labels: tuple[FrameLabel, ...] = ()  # by their starts; may overlap; in the source's seconds
    questions: tuple[Question, ...] = ()
    image_fps: float = 1.0  # images a second, from which the images' times follow
    splits: Mapping[str, str] = field(default_factory=dict)  # columns split<N> by name; no empty cells
    meta: Mapping[str, str] = field(default_factory=dict)  # columns meta_<name> by name; no empty cells

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, each once; none where the manifest has nothing."""
        return tuple(dict.fromkeys(text.strip() for text in self.label.split("|"))) if self.label else ()

    @property
    def overlap(self) -> tuple[FrameLabel, FrameLabel] | None:
        """The first two intervals of `frame_labels` that overlap; None if there are none."""
        pairs = pairwise(self.frame_labels)
        return next((pair for pair in pairs if pair[1].start_seconds < pair[0].end_seconds), None)


META = "meta_"  # begins the names of the user's own columns, which hold text
_OWN_NAME = re.compile(rf"{META}\w+")
_SPLIT_NAME = re.compile(r"split[0-9]+")

_TEXT, _NUMBER = pa.string(), pa.float64()


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a manifest: its type, and how a checked cell becomes a field of `Clip` and back."""

    field: str
    type: pa.DataType = _TEXT
    is_required: bool = False
    is_target: bool = False
    read: Callable[[Any], Any] | None = None  # from a cell that is not empty; None: the cell is the value
    write: Callable[[Any], str | float | None] | None = None  # None: the value is the cell


def clip_of_row(cells: Mapping[str, str | float | None]) -> Clip:
    """A checked row, by the names of its columns, as a Clip. The cells of required columns are not None."""
    fields: dict[str, Any] = {
        column.field: column.read(cells[name]) if column.read else cells[name]
        for name, column in COLUMNS.items()
        if cells[name] is not None
    }
    own = {name: cell for name, cell in cells.items() if name not in COLUMNS and cell is not None}
    fields["splits"] = {name: cell for name, cell in own.items() if is_split(name)}
    fields["meta"] = {name.removeprefix(META): cell for name, cell in own.items() if is_meta(name)}
    return Clip(**fields)


def row_of_clip(clip: Clip) -> dict[str, str | float | None]:
    """A Clip as a row, by the names of columns. Raises ManifestError for a text that holds the separator."""
    try:
        values = ((name, column.write, getattr(clip, column.field)) for name, column in COLUMNS.items())
        row = {name: write(value) if write else value for name, write, value in values}
    except ValueError as error:
        raise ManifestError(f"clip {clip.clip_id!r}: {error}") from None
    return row | dict(clip.splits) | {f"{META}{name}": value for name, value in clip.meta.items()}


def is_meta(column: str) -> bool:
    """Whether a manifest's column is one of the user's own."""
    return _OWN_NAME.fullmatch(column) is not None


def is_split(column: str) -> bool:
    """Whether a manifest's column has another split of each clip, for one of several folds."""
    return _SPLIT_NAME.fullmatch(column) is not None


def decimal_text(number: float) -> str:
    """The shortest text that reads back as the same number, without an exponent."""
    return np.format_float_positional(number, trim="0")


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


def _joined(texts: tuple[str, ...]) -> str | None:
    for text in texts:
        if "|" in text:
            raise ValueError(f"{text!r} holds the separator '|'. Take it out.")
    return "|".join(texts) or None


def _frame_label(text: str) -> FrameLabel:
    interval, label = text.split(":", 1)
    start, end = interval.split("-")
    return FrameLabel(float(start), float(end), label.strip())


def _frame_label_text(item: FrameLabel) -> str:
    return f"{decimal_text(item.start_seconds)}-{decimal_text(item.end_seconds)}:{item.label}"


def _question(text: str) -> Question:
    question, answer = text.split("=")
    return Question(question.strip(), answer.strip())


COLUMNS = {
    "clip_id": Column("clip_id", is_required=True),
    "source": Column("sources", is_required=True, read=_split, write=_joined),
    "start_seconds": Column("start_seconds", _NUMBER),
    "end_seconds": Column("end_seconds", _NUMBER),
    "split": Column("split", is_required=True),
    "group": Column("group"),
    "label": Column("label", is_target=True),
    "caption": Column("captions", is_target=True, read=_split, write=_joined),
    "value": Column(
        "values",
        is_target=True,
        read=lambda text: tuple(map(float, text.split("|"))),
        write=lambda values: _joined(tuple(map(repr, values))),
    ),
    "frame_labels": Column(
        "frame_labels",
        is_target=True,
        read=lambda text: tuple(map(_frame_label, text.split("|"))),
        write=lambda items: _joined(tuple(map(_frame_label_text, items))),
    ),
    "questions": Column(
        "questions",
        is_target=True,
        read=lambda text: tuple(map(_question, text.split("|"))),
        write=lambda items: _joined(tuple(f"{item.question}={item.answer}" for item in items)),
    ),
    "image_fps": Column("image_fps", _NUMBER, write=lambda fps: None if fps == 1.0 else fps),
}
SCHEMA = pa.schema([(name, column.type) for name, column in COLUMNS.items()])
REQUIRED = tuple(name for name, column in COLUMNS.items() if column.is_required)
TARGETS = tuple(name for name, column in COLUMNS.items() if column.is_target)

# Each split, and the names that a folder or a cell may have for it.
SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev"),
    "test": ("test", "testing"),
}


UNUSED = "unused"  # the split of clips that have features, and that nothing is trained or measured on


def split_named(name: str) -> str | None:
    """The split that `name` stands for, in capitals too; None where it stands for none."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)
