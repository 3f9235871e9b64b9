"""The manifest: which clips there are, from which files, in which split, with which targets.

A manifest is a flat table of text and numbers (CSV or Parquet; manifests/README.md describes the
columns), held as Arrow and checked column by column, so that a million rows take seconds. Rows become
`Clip`s only when somebody iterates.
"""

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from pipeline.errors import ManifestError
from pipeline.files import write_atomically
from pipeline.manifest_rules import REQUIRED, SCHEMA, SIGNED_NUMBER, SPLITS, Problems, check

__all__ = [
    "SCHEMA",
    "SPLITS",
    "Clip",
    "FrameLabel",
    "Manifest",
    "Question",
    "check_sources",
    "read_manifest",
    "write_manifest",
]


_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary, pa.types.is_integer)


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
    """One sample: a stretch of a video, an image, a folder of images or several images; and its targets."""

    clip_id: str
    sources: tuple[str, ...]  # relative to the corpus root
    split: str  # train, val or test
    start_seconds: float | None = None  # of the source; its frames before this are not the clip's
    end_seconds: float | None = None  # exclusive
    group: str | None = None  # never in two splits: a subject, a scene, a source video
    label: str | None = None
    captions: tuple[str, ...] = ()
    values: tuple[float, ...] = ()  # to be predicted
    frame_labels: tuple[FrameLabel, ...] = ()  # increasing, disjoint; in the source's seconds
    questions: tuple[Question, ...] = ()
    image_fps: float = 1.0  # rate at which images are shown: gives their times


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest. `len` and columns are cheap; iterating makes `Clip`s."""

    table: pa.Table  # of SCHEMA, every column present
    rows: np.ndarray = field(repr=False)  # (N,) int64: where a clip stands: CSV line (header 1), Parquet row

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Clip]:
        for batch in self.table.to_batches(max_chunksize=4096):
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield _clip(*values)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of SCHEMA as text or float64, null where the manifest has nothing."""
        return self.table.column(name)

    def clips(self, *, split: str | None = None) -> list[Clip]:
        """All clips, or those of a split, in the manifest's order."""
        table = self.table if split is None else self.table.filter(pc.equal(self.table["split"], split))
        return list(Manifest(table, self.rows[:0]))


def read_manifest(path: Path) -> Manifest:
    """Read and check a .csv or .parquet manifest.

    Raises ManifestError listing every problem with its row.
    """
    _check_suffix(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"No manifest {path}. Create it, or correct corpus.manifest.") from None
    problems = Problems(path)
    try:
        raw, rows = _parse_csv(data, problems) if path.suffix == ".csv" else _parse_parquet(data)
    except pa.ArrowException as error:
        raise ManifestError(f"{path} can't be read as {path.suffix[1:].upper()}: {error}") from None
    problems.rows = rows
    _check_columns(raw.column_names, problems)
    table = pa.table([_typed(raw, column, problems) for column in SCHEMA], schema=SCHEMA)
    check(table, problems)
    problems.raise_if_any()
    return Manifest(table, rows)


def check_sources(manifest: Manifest, *, root: Path) -> None:
    """Raise ManifestError naming every source that does not exist below `root`, with its row."""
    problems = Problems(root, manifest.rows)
    sources = pc.split_pattern(manifest.column("source").combine_chunks(), "|")
    known: dict[str, bool] = {}
    for index, source in zip(
        pc.list_parent_indices(sources).to_pylist(), sources.flatten().to_pylist(), strict=True
    ):
        if source not in known:
            known[source] = os.path.exists(os.path.join(root, source))  # noqa: PTH110, PTH118 (4x faster)
        if not known[source]:
            problems.add(f"source {source!r} does not exist. Correct it, or corpus.root.", index)
    problems.raise_if_any()


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as .csv or .parquet; equal clips give equal bytes. Columns without values are left out.

    Raises ManifestError, listing every problem, for clips that `read_manifest` would not accept.
    """
    _check_suffix(path)
    cells = [_cells(clip) for clip in clips]
    table = pa.Table.from_pylist(cells, schema=SCHEMA)
    problems = Problems(path, np.arange(len(cells)) + (2 if path.suffix == ".csv" else 1))
    check(table, problems)
    problems.raise_if_any()
    table = table.select([c for c in SCHEMA.names if c in REQUIRED or table[c].null_count < len(table)])
    if path.suffix == ".csv":
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(table.column_names)
        writer.writerows(zip(*(column.to_pylist() for column in table.columns), strict=True))
        write_atomically(path, text.getvalue().encode())
    else:
        buffer = io.BytesIO()
        pa.parquet.write_table(table, buffer)
        write_atomically(path, buffer.getvalue())


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".csv", ".parquet"):
        raise ManifestError(f"{path}: a manifest is a .csv or a .parquet file.")


def _parse_csv(data: bytes, problems: Problems) -> tuple[pa.Table, np.ndarray]:
    """All columns as text, and the row number of each clip. Blank lines count as rows and are dropped."""
    malformed: list[int] = []

    def skip(row: pa.csv.InvalidRow) -> str:
        message = (
            f"{row.actual_columns} values, but {row.expected_columns} columns. Quote values with commas."
        )
        problems.add_at_row(message, row.number)
        malformed.append(row.number)
        return "skip"

    header = data.split(b"\n", 1)[0].decode(errors="replace").lstrip("\ufeff").strip()
    table = pa.csv.read_csv(
        io.BytesIO(data),
        read_options=pa.csv.ReadOptions(use_threads=False),  # else rows have no numbers
        parse_options=pa.csv.ParseOptions(
            newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=skip
        ),
        convert_options=pa.csv.ConvertOptions(
            column_types={name.strip('" '): pa.string() for name in header.split(",")},
            strings_can_be_null=True,
            null_values=[""],
        ),
    )
    rows = np.setdiff1d(np.arange(table.num_rows + len(malformed)) + 2, malformed)
    blank = np.ones(table.num_rows, dtype=bool)
    for column in table.columns:
        blank &= column.is_null().to_numpy()
    return table.filter(pa.array(~blank)), rows[~blank]


def _parse_parquet(data: bytes) -> tuple[pa.Table, np.ndarray]:
    table = pa.parquet.read_table(pa.BufferReader(data))
    return table, np.arange(table.num_rows) + 1


def _check_columns(names: list[str], problems: Problems) -> None:
    available = f"Available: {', '.join(SCHEMA.names)}."
    for name in dict.fromkeys(names):
        if name not in SCHEMA.names:
            problems.add(f"unknown column {name!r}. {available}")
        if names.count(name) > 1:
            problems.add(f"column {name!r} is there {names.count(name)} times. Keep one.")
    for name in REQUIRED:
        if name not in names:
            problems.add(f"column {name!r} is missing. Required: {', '.join(REQUIRED)}.")
    if len(set(names)) < len(names) or not set(REQUIRED) <= set(names):
        problems.raise_if_any()  # the rows would only repeat it


def _typed(raw: pa.Table, column: pa.Field, problems: Problems) -> pa.Array:
    """The column (N,) as text, trimmed, or as float64; null where it is empty, absent or wrong."""
    if column.name not in raw.column_names:
        return pa.nulls(raw.num_rows, column.type)
    values = raw[column.name].combine_chunks()
    if pa.types.is_floating(values.type) or pa.types.is_integer(values.type):
        numbers = values.cast(pa.float64())
        numbers = pc.if_else(pc.is_nan(numbers), None, numbers)  # pandas' way to say null
        if column.type == pa.float64():
            return numbers
        if column.name == "value":
            return numbers.cast(pa.string())
    if not (pa.types.is_null(values.type) or any(is_type(values.type) for is_type in _TEXT_TYPES)):
        problems.add(f"column {column.name!r} is of type {values.type}. Make it {column.type}.")
        return pa.nulls(raw.num_rows, column.type)
    text = pc.utf8_trim_whitespace(values.cast(pa.string()))
    text = pc.if_else(pc.equal(text, ""), None, text)
    if column.type == pa.string():
        return text
    is_number = pc.match_substring_regex(text, f"^{SIGNED_NUMBER}$")
    problems.add_where(pc.invert(is_number), column.name, text, "is not a number.")
    return pc.if_else(is_number, text, None).cast(pa.float64())


def _clip(
    clip_id: str,
    source: str,
    start_seconds: float | None,
    end_seconds: float | None,
    split: str,
    group: str | None,
    label: str | None,
    caption: str | None,
    value: str | None,
    frame_labels: str | None,
    questions: str | None,
    image_fps: float | None,
) -> Clip:
    """A row of SCHEMA, checked before, as a Clip."""
    return Clip(
        clip_id=clip_id,
        sources=tuple(source.split("|")),
        split=split,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        group=group,
        label=label,
        captions=tuple(caption.split("|")) if caption else (),
        values=tuple(map(float, value.split("|"))) if value else (),
        frame_labels=tuple(_frame_label(text) for text in frame_labels.split("|")) if frame_labels else (),
        questions=tuple(_question(text) for text in questions.split("|")) if questions else (),
        image_fps=1.0 if image_fps is None else image_fps,
    )


def _frame_label(text: str) -> FrameLabel:
    times, label = text.split(":", 1)
    start, end = times.split("-")
    return FrameLabel(float(start), float(end), label.strip())


def _question(text: str) -> Question:
    question, answer = text.split("=")
    return Question(question.strip(), answer.strip())


def _cells(clip: Clip) -> dict[str, str | float | None]:
    """A Clip as a row of SCHEMA. Raises ManifestError for a text that holds the separator."""
    labels = [frame_label.label for frame_label in clip.frame_labels]
    words = [text for item in clip.questions for text in (item.question, item.answer)]
    for text in (*clip.sources, *clip.captions, *labels, *words):
        if "|" in text:
            raise ManifestError(f"clip {clip.clip_id!r}: {text!r} holds the separator '|'. Take it out.")
    return {
        "clip_id": clip.clip_id,
        "source": "|".join(clip.sources),
        "start_seconds": clip.start_seconds,
        "end_seconds": clip.end_seconds,
        "split": clip.split,
        "group": clip.group,
        "label": clip.label,
        "caption": "|".join(clip.captions) or None,
        "value": "|".join(map(repr, clip.values)) or None,
        "frame_labels": "|".join(
            f"{_decimal(item.start_seconds)}-{_decimal(item.end_seconds)}:{item.label}"
            for item in clip.frame_labels
        )
        or None,
        "questions": "|".join(f"{item.question}={item.answer}" for item in clip.questions) or None,
        "image_fps": None if clip.image_fps == 1.0 else clip.image_fps,
    }


def _decimal(number: float) -> str:
    """The shortest text that reads back as the same number, without an exponent."""
    return np.format_float_positional(number, trim="0")
