"""The manifest: which clips there are, from which files, in which split, with which targets.

A manifest is a flat table of text and numbers (CSV or Parquet; manifests/README.md describes the
columns), held as Arrow and checked column by column, so that a million rows take seconds. Rows become
`Clip`s only when somebody iterates.
"""

import csv
import functools
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import xxhash

from pipeline.errors import ManifestError, MissingManifestError
from pipeline.manifest.clips import (
    COLUMNS,
    META,
    REQUIRED,
    SCHEMA,
    Clip,
    clip_of_row,
    is_meta,
    is_split,
    row_of_clip,
)
from pipeline.manifest.rules import SIGNED_NUMBER, Problems, check, has_several
from pipeline.manifest.sources import Fault, fault_of, fault_sentences
from pipeline.system.files import FileStamp, file_stamp, write_atomically
from pipeline.system.text_files import read_csv

_CHUNK_ROWS = 20_000  # of a CSV are Python objects at a time

_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary, pa.types.is_integer)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A checked manifest. Its length and columns are cheap; iterating makes a `Clip` of each row."""

    table: pa.Table  # of SCHEMA, every column present; then columns split<N> and meta_<name> of text
    rows: np.ndarray = field(repr=False)  # (N,) int64: where a clip stands: CSV line (header 1), Parquet row

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[Clip]:
        for batch in self.table.to_batches(max_chunksize=4096):
            yield from map(clip_of_row, batch.to_pylist())

    def column(self, name: str) -> pa.ChunkedArray:
        """A column as text or float64, null where the manifest has nothing."""
        return self.table.column(name)

    def has_several(self, name: str) -> np.ndarray:
        """Whether each clip (N,) has several labels; in the column `frame_labels`, several at one time."""
        return has_several(self.column(name).combine_chunks(), per_frame=name == "frame_labels")

    def sources(self) -> list[str]:
        """The sources of all clips, each once."""
        names: list[str] = pc.unique(_split_sources(self.table).flatten()).to_pylist()
        return names

    def clips(self, *, split: str | None = None) -> list[Clip]:
        """All clips, or those of a split, in the manifest's order."""
        table = self.table if split is None else self.table.filter(pc.equal(self.table["split"], split))
        return list(Manifest(table, self.rows[:0]))


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a .csv or .parquet manifest.

    Raises ManifestError listing every problem with its row, MissingManifestError, and TextFileError for a CSV
    that is no text.
    """
    path = Path(path)
    _check_suffix(path)
    try:
        table, problems = read_table(path, required=REQUIRED)
    except FileNotFoundError:
        raise MissingManifestError(f"No manifest {path}.") from None
    check(table, problems)
    problems.raise_if_any()
    return Manifest(table, np.asarray(problems.rows))


def read_table(
    path: Path, *, required: Sequence[str], names: Mapping[str, str] | None = None, noun: str = "row"
) -> tuple[pa.Table, Problems]:
    """The rows of a .parquet file or else a CSV, unchecked; and their places and problems so far.

    The columns are those of SCHEMA, then those named split<N> or meta_<name>. `names` maps other columns of
    the file to columns of SCHEMA; `noun` is what messages call a row.
    Raises ManifestError for columns that are missing or there twice, TextFileError for a CSV that is no text.
    """
    refused: list[tuple[str, int]] = []
    if path.suffix == ".parquet":
        raw = _parquet(path, pa.parquet.read_table)
        rows: Sequence[int] = range(1, raw.num_rows + 1)
    else:
        raw, rows = _parse_csv(path, refuse=lambda *problem: refused.append(problem))
    problems = Problems(path, rows, noun=noun)
    for message, row in refused:
        problems.add_at_row(message, row)
    columns = [(names or {}).get(name, name) for name in raw.column_names]
    _check_columns(columns, problems, required=required)
    own = [name for name in raw.column_names if is_split(name) or is_meta(name)]
    renamed = [name for name in own if name not in columns]  # these keep their own names, too
    raw = pa.table([*raw.columns, *map(raw.column, renamed)], names=[*columns, *renamed])
    schema = _schema(own)
    return pa.table([_typed(raw, column, problems) for column in schema], schema=schema), problems


def column_names(path: Path) -> list[str]:
    """The names of the columns of a .parquet file or else a CSV.

    Raises ManifestError for a file that is no Parquet, TextFileError for a CSV that is no text.
    """
    if path.suffix == ".parquet":
        names: list[str] = _parquet(path, pa.parquet.read_schema).names
        return names
    return read_csv(path, refuse=lambda *_: None)[0]


def clips_digest(path: str | Path) -> str:
    """The digest of what a manifest says of its clips, but for columns split<N> and meta_<name>.

    Training reads none of these.

    A CSV and a Parquet file that say the same have the same digest. Raises as `read_manifest` does.
    """
    try:
        stamp = file_stamp(path)
    except FileNotFoundError:
        raise MissingManifestError(f"No manifest {path}.") from None
    return _clips_digest(Path(path), stamp)


@functools.lru_cache(maxsize=8)
def _clips_digest(path: Path, stamp: FileStamp) -> str:  # noqa: ARG001 - of the file that is there now
    text = pa.BufferOutputStream()
    pa.csv.write_csv(read_manifest(path).table.select(SCHEMA.names), text)
    return xxhash.xxh3_128_hexdigest(text.getvalue())


def source_faults(manifest: Manifest, *, root: Path) -> dict[str, Fault]:
    """{source: fault} of the sources that are missing or were not fetched (git-annex, DVC, Git LFS)."""
    found = ((source, fault_of(root, source)) for source in manifest.sources())
    return {source: fault for source, fault in found if fault}


def check_sources(manifest: Manifest, *, root: Path) -> None:
    """Raise ManifestError naming every source that can't be read below `root`, with its first row.

    Sources that have one fault, e.g. that were not fetched, are one problem.
    """
    problems = Problems(root, manifest.rows)
    sentences = fault_sentences(source_faults(manifest, root=root))
    sources = _split_sources(manifest.table)
    for index, source in zip(
        pc.list_parent_indices(sources).to_pylist(), sources.flatten().to_pylist(), strict=True
    ):
        if sentence := sentences.pop(source, None):
            problems.add(f"source {sentence}", index)
    problems.raise_if_any()


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as .csv or .parquet; equal clips give equal bytes. Columns without values are left out.

    Raises ManifestError as `check_clips` does.
    """
    table = check_clips(path, clips)
    table = table.select(
        [name for name in table.column_names if name in REQUIRED or table[name].null_count < len(table)]
    )
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


def check_clips(path: Path, clips: Iterable[Clip]) -> pa.Table:
    """The table of clips that the manifest `path` is to have.

    Raises ManifestError, listing every problem, for clips that `read_manifest` would not accept.
    """
    _check_suffix(path)
    cells = [row_of_clip(clip) for clip in clips]
    own = sorted({name for row in cells for name in row.keys() - COLUMNS.keys()})
    table = pa.Table.from_pylist(cells, schema=_schema(own))
    problems = Problems(path, np.arange(len(cells)) + (2 if path.suffix == ".csv" else 1))
    _check_columns(table.column_names, problems, required=REQUIRED)
    check(table, problems)
    problems.raise_if_any()
    return table


def _schema(own: Iterable[str]) -> pa.Schema:
    """SCHEMA, and further columns of text."""
    return pa.schema([*SCHEMA, *((name, pa.string()) for name in own)])


def _split_sources(table: pa.Table) -> pa.ListArray:
    return pc.split_pattern(table.column("source").combine_chunks(), "|")


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".csv", ".parquet"):
        raise ManifestError(f"{path}: a manifest is a .csv or a .parquet file.")


def _parse_csv(path: Path, *, refuse: Callable[[str, int], None]) -> tuple[pa.Table, list[int]]:
    """All columns as text, and the line of each row."""
    names, rows = read_csv(path, refuse=refuse)
    schema = pa.schema([(name, pa.string()) for name in names])
    lines: list[int] = []
    batches = []
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        lines += [line for line, _ in chunk]
        columns = zip(*(cells for _, cells in chunk), strict=True)
        batches.append(pa.record_batch([pa.array(cells, pa.string()) for cells in columns], schema=schema))
    return pa.Table.from_batches(batches, schema=schema), lines


def _parquet(path: Path, read: Callable[[pa.BufferReader], Any]) -> Any:
    try:
        return read(pa.BufferReader(path.read_bytes()))
    except pa.ArrowException as error:
        raise ManifestError(f"{path} can't be read as Parquet: {error}") from None


def _check_columns(names: list[str], problems: Problems, *, required: Sequence[str]) -> None:
    for name in dict.fromkeys(names):
        if not name:
            problems.add("a column has no name. Name it, or take out the comma too many of the first line.")
        elif name not in COLUMNS and not is_split(name) and not is_meta(name):
            own = re.sub(r"\W+", "_", name.removeprefix(META)) or "camera"
            problems.add(
                f"unknown column {name!r}. Available: {', '.join(COLUMNS)}. A column of your own begins with"
                f" {META}, and letters, digits and '_' follow: {META}{own}."
            )
        if names.count(name) > 1:
            problems.add(f"column {name!r} is there {names.count(name)} times. Keep one.")
    for name in required:
        if name not in names:
            problems.add(f"column {name!r} is missing. Required: {', '.join(required)}.")
    if len(set(names)) < len(names) or not set(required) <= set(names):
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
