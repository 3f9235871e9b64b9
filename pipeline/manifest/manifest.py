"""The manifest: which clips there are, from which files, in which split, with which targets.

A manifest is a flat table of text and numbers (CSV or Parquet; manifests/README.md describes the
columns), held as Arrow and checked column by column, so that a million rows take seconds. Rows become
`Clip`s only when somebody iterates.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from pipeline.errors import ManifestError
from pipeline.manifest.clips import Clip, clip_of_row, row_of_clip
from pipeline.manifest.rules import REQUIRED, SCHEMA, SIGNED_NUMBER, Problems, check, few
from pipeline.manifest.sources import Fault, fault_of
from pipeline.system.files import write_atomically
from pipeline.system.text_files import read_csv

_CHUNK_ROWS = 20_000  # of a CSV are Python objects at a time

_TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_dictionary, pa.types.is_integer)


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
                yield clip_of_row(*values)

    def column(self, name: str) -> pa.ChunkedArray:
        """A column of SCHEMA as text or float64, null where the manifest has nothing."""
        return self.table.column(name)

    def clips(self, *, split: str | None = None) -> list[Clip]:
        """All clips, or those of a split, in the manifest's order."""
        table = self.table if split is None else self.table.filter(pc.equal(self.table["split"], split))
        return list(Manifest(table, self.rows[:0]))


def read_manifest(path: str | Path) -> Manifest:
    """Read and check a .csv or .parquet manifest.

    Raises ManifestError listing every problem with its row, TextFileError for a CSV that is no text.
    """
    path = Path(path)
    _check_suffix(path)
    problems = Problems(path)
    try:
        table = read_table(path, problems, required=REQUIRED)
    except FileNotFoundError:
        raise ManifestError(f"No manifest {path}. Create it, or correct corpus.manifest.") from None
    check(table, problems)
    problems.raise_if_any()
    return Manifest(table, problems.rows)


def read_table(
    path: Path, problems: Problems, *, required: Sequence[str], names: Mapping[str, str] | None = None
) -> pa.Table:
    """The rows of a .parquet file or else a CSV, as SCHEMA and unchecked; `problems` learns where they stand.

    `names` are columns that stand for columns of SCHEMA. Raises ManifestError for columns that are missing
    or there twice, TextFileError for a CSV that is no text.
    """
    try:
        raw = _parse_parquet(path, problems) if path.suffix == ".parquet" else _parse_csv(path, problems)
    except pa.ArrowException as error:
        raise ManifestError(f"{path} can't be read as Parquet: {error}") from None
    columns = [(names or {}).get(name, name) for name in raw.column_names]
    _check_columns(columns, problems, required=required)
    raw = raw.rename_columns(columns)
    return pa.table([_typed(raw, column, problems) for column in SCHEMA], schema=SCHEMA)


def column_names(path: Path) -> list[str]:
    """The columns of a .parquet file or else a CSV. Raises TextFileError for a CSV that is no text."""
    if path.suffix == ".parquet":
        try:
            names: list[str] = pa.parquet.read_schema(path).names
        except pa.ArrowException as error:
            raise ManifestError(f"{path} can't be read as Parquet: {error}") from None
        return names
    return read_csv(path, refuse=lambda *_: None)[0]


def source_faults(manifest: Manifest, *, root: Path) -> dict[str, Fault]:
    """By their names, the sources that are missing or were not fetched (git-annex, DVC, Git LFS)."""
    sources = pc.unique(pc.split_pattern(manifest.column("source").combine_chunks(), "|").flatten())
    found = ((source, fault_of(root, source)) for source in sources.to_pylist())
    return {source: fault for source, fault in found if fault}


def check_sources(manifest: Manifest, *, root: Path) -> None:
    """Raise ManifestError naming every source that is not there below `root`, with its row.

    Sources that were not fetched are one problem a kind.
    """
    problems = Problems(root, manifest.rows)
    faults = source_faults(manifest, root=root)
    sources = pc.split_pattern(manifest.column("source").combine_chunks(), "|")
    places = zip(pc.list_parent_indices(sources).to_pylist(), sources.flatten().to_pylist(), strict=True)
    report_faults(((i, f"source {name!r}", faults[name]) for i, name in places if name in faults), problems)
    problems.raise_if_any()


def report_faults(faults: Iterable[tuple[int, str, Fault]], problems: Problems) -> None:
    """Report faults (index of the clip, name of the source, fault); unfetched ones once a kind."""
    alike: dict[Fault, list[int]] = {}
    first_names: dict[Fault, str] = {}
    for index, name, fault in faults:
        if fault.is_unfetched:
            alike.setdefault(fault, []).append(index)
            first_names.setdefault(fault, name)
        else:
            problems.add(f"{name} {fault.reason}. {fault.remedy}", index)
    for fault, (first, *others) in alike.items():
        places = few(problems.rows[others].tolist(), noun=problems.noun)
        more = f" (and {len(others)} like it, in {places})" if others else ""
        problems.add(f"{first_names[fault]} {fault.reason}{more}. {fault.remedy}", first)


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as .csv or .parquet; equal clips give equal bytes. Columns without values are left out.

    Raises ManifestError, listing every problem, for clips that `read_manifest` would not accept.
    """
    _check_suffix(path)
    cells = [row_of_clip(clip) for clip in clips]
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


def _parse_csv(path: Path, problems: Problems) -> pa.Table:
    """All columns as text."""
    names, rows = read_csv(path, refuse=problems.add_at_row)
    schema = pa.schema([(name, pa.string()) for name in names])
    lines: list[int] = []
    batches = []
    while chunk := list(islice(rows, _CHUNK_ROWS)):
        lines += [line for line, _ in chunk]
        columns = zip(*(cells for _, cells in chunk), strict=True)
        batches.append(pa.record_batch([pa.array(cells, pa.string()) for cells in columns], schema=schema))
    problems.rows = np.array(lines, dtype=np.int64)
    return pa.Table.from_batches(batches, schema=schema)


def _parse_parquet(path: Path, problems: Problems) -> pa.Table:
    table = pa.parquet.read_table(pa.BufferReader(path.read_bytes()))
    problems.rows = np.arange(table.num_rows) + 1
    return table


def _check_columns(names: list[str], problems: Problems, *, required: Sequence[str]) -> None:
    available = f"Available: {', '.join(SCHEMA.names)}."
    for name in dict.fromkeys(names):
        if not name:
            problems.add("a column has no name. Name it, or take out the comma too many of the first line.")
        elif name not in SCHEMA.names:
            problems.add(f"unknown column {name!r}. {available}")
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
