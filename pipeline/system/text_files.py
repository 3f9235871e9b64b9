"""Text files from users: their encoding, and CSV tables with the line of each row."""

import codecs
import csv
import io
import re
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pipeline.errors import TextFileError

T = TypeVar("T")

_ENCODINGS = (  # by byte order mark; that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF8, "UTF-8"),
    (codecs.BOM_UTF32_LE, "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)
_LINE_BREAK = re.compile(r"\r\n|\r|\n")

# A clip's frame_labels may be longer than the 128 KiB that the csv module allows. Its limit is the process's:
# it is raised while some rows are read, by one thread at a time.
_field_limit_lock = threading.Lock()
_NUM_ROWS_AT_ONCE = 1000


def read_text(path: Path) -> str:
    """The file's text, by its byte order mark if it has one, else as UTF-8. Line breaks stay as they are.

    Raises TextFileError, naming line and encoding, when it is no such text; OSError when it can't be read.
    """
    data = path.read_bytes()
    bom, encoding = next(((bom, name) for bom, name in _ENCODINGS if data.startswith(bom)), (b"", "UTF-8"))
    data = data[len(bom) :]
    wide = next((name for name, odd in (("UTF-16LE", 1), ("UTF-16BE", 0)) if _is_wide(data, odd=odd)), None)
    if wide and not bom:
        raise TextFileError(f"{path} looks like {wide}, without a byte order mark. {_convert(path, wide)}")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = _line_at_end(data[: error.start].decode(encoding))
        raise TextFileError(f"{path}: line {line} is not {encoding}{_remedy(path, data, error)}") from None
    if "\0" in text:
        line = _line_at_end(text[: text.index("\0")])
        raise TextFileError(f"{path}: line {line} holds a NUL byte. The file is damaged: save it again.")
    return text


def _line_at_end(text: str) -> int:
    return 1 + len(_LINE_BREAK.findall(text))


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line, text) of each line that is not blank, trimmed. Raises as `read_text` does."""
    lines = enumerate(_LINE_BREAK.split(read_text(path)), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_csv(
    path: Path, *, refuse: Callable[[str, int], None]
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The column names, trimmed, and (line, cells) of each row that is not blank; the header is line 1.

    A row with too many or too few cells is left out; `refuse` is called with the reason and the line. So it
    is for a quote that is not closed or is followed by text. Such a quote ends the table, because nobody
    knows where the next row begins.

    Raises TextFileError for an empty file, and as `read_text` does.
    """
    text = read_text(path)
    rows = _csv_rows(text, refuse)
    _, header = next(_without_field_limit(islice(rows, 1)), (0, None))
    if header is None:
        problem = "is empty" if not text.strip() else "has a quote in line 1 that is never closed"
        raise TextFileError(f"{path} {problem}. Its first line must name the columns.")
    for separator in (";", "\t"):
        if len(header) == 1 and separator in header[0]:
            raise TextFileError(f"{path}: columns are separated by {separator!r}. Separate them by commas.")
    return [name.strip() for name in header], _without_field_limit(_of_length(rows, len(header), refuse))


def _without_field_limit(rows: Iterator[T]) -> Iterator[T]:
    while True:
        with _field_limit_lock:
            limit = csv.field_size_limit(sys.maxsize)
            try:
                some_rows = list(islice(rows, _NUM_ROWS_AT_ONCE))
            finally:
                csv.field_size_limit(limit)
        if not some_rows:
            return
        yield from some_rows


def _csv_rows(text: str, refuse: Callable[[str, int], None]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        cause = (
            "a quote is opened, and never closed"
            if "unexpected end" in str(error)
            else "text follows a closing quote, or a quote is opened and not closed"
        )
        refuse(f'{cause}. A quote inside a quoted cell is written twice: "a ""b"" c".', line)


def _of_length(
    rows: Iterator[tuple[int, list[str]]], num_columns: int, refuse: Callable[[str, int], None]
) -> Iterator[tuple[int, list[str]]]:
    for line, cells in rows:
        if len(cells) == num_columns:
            yield line, cells
        else:
            values = f"{len(cells)} value{'s' * (len(cells) > 1)}"
            columns = f"{num_columns} column{'s' * (num_columns > 1)}"
            many = len(cells) > num_columns
            remedy = "Quote values with commas." if many else "A column without a value has an empty cell."
            refuse(f"{values}, but {columns}. {remedy}", line)


def _remedy(path: Path, data: bytes, error: UnicodeDecodeError) -> str:
    if error.encoding.upper() != "UTF-8":
        return ", as its byte order mark says. The file is damaged or cut: save it again, as UTF-8."
    start = 1 + max(data.rfind(b"\n", 0, error.start), data.rfind(b"\r", 0, error.start))
    line = re.split(rb"[\r\n]", data[start:], maxsplit=1)[0].decode("cp1252", errors="replace")
    return (
        f". Save the file as UTF-8. If it should read {line[:80]!r}, it is in Windows-1252:"
        f" {_convert(path, 'WINDOWS-1252')}"
    )


def _is_wide(data: bytes, *, odd: int) -> bool:
    """Whether most of the bytes at odd (1) or even (0) positions are 0, and no others: western UTF-16."""
    return data[odd::2].count(0) > len(data) // 4 and data[1 - odd :: 2].count(0) == 0


def _convert(path: Path, encoding: str) -> str:
    source, target = (shlex.quote(str(name)) for name in (path, f"{path.stem}-utf8{path.suffix}"))
    return f"`iconv -f {encoding} -t UTF-8 {source} > {target}` converts it."
