"""Text files: encodings, and CSVs whose every cell counts."""

import codecs
from pathlib import Path

import pytest

from pipeline.errors import ConfigError, TextFileError
from pipeline.system.text_files import read_csv, read_lines, read_text
from stages.params import read_params

TEXT = "source,label\r\na.mp4,Käfig 籠\r\nb.mp4,run\r\n"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
    ],
)
def test_text_is_read_by_its_byte_order_mark_or_as_utf_8(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(data)
    assert read_text(tmp_path / "labels.csv") == TEXT


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"a,b\n1,2\r\ncaf\xe9,x\n", "labels.csv: line 3 is not UTF-8. Save the file as UTF-8. If it should"),
        (b"a,b\n1,2\r\ncaf\xe9,x\n", "should read 'café,x', it is in Windows-1252: `iconv -f WINDOWS-1252"),
        (b"a\rb\rcaf\xe9\r", "line 3 is not UTF-8"),
        ("a,ä\n".encode("utf-16-le"), "looks like UTF-16LE, without a byte order mark. `iconv -f UTF-16LE"),
        ("a,b\n".encode("utf-16-be"), "looks like UTF-16BE, without a byte order mark"),
        (codecs.BOM_UTF16_LE + "a\nbc".encode("utf-16-le")[:-1], "line 2 is not UTF-16LE, as its byte order"),
        (codecs.BOM_UTF8 + b"a\n\xff\n", "line 2 is not UTF-8"),
        (b"a,b\n1,2\n\0\0\0\0\0\0\0\0", "line 3 holds a NUL byte. The file is damaged"),
    ],
)
def test_other_text_is_one_message_with_file_line_and_encoding(
    tmp_path: Path, data: bytes, complaint: str
) -> None:
    (tmp_path / "labels.csv").write_bytes(data)
    with pytest.raises(TextFileError) as caught:
        read_text(tmp_path / "labels.csv")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_have_their_numbers_and_blank_ones_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfone \r\n\r\n two\r\n")
    assert read_lines(tmp_path / "list.txt") == [(1, "one"), (3, "two")]


def csv_of(tmp_path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]], list[tuple[int, str]]]:
    """(column names, rows with their lines, refused lines) of a CSV."""
    (tmp_path / "table.csv").write_text(text, newline="")
    refused: list[tuple[int, str]] = []
    names, rows = read_csv(
        tmp_path / "table.csv", refuse=lambda message, line: refused.append((line, message))
    )
    return names, list(rows), refused


def test_rows_know_their_line_also_after_cells_of_several_lines(tmp_path: Path) -> None:
    text = 'a, b\r\n1,"x, ""y"""\r\n\r\n2,"one\r\ntwo"\r\n , \r\n3,5" nail'
    names, rows, refused = csv_of(tmp_path, text)
    assert names == ["a", "b"]
    assert rows == [(2, ["1", 'x, "y"']), (4, ["2", "one\r\ntwo"]), (7, ["3", '5" nail'])]
    assert not refused


def test_a_cell_may_be_longer_than_128_kib(tmp_path: Path) -> None:
    _, rows, _ = csv_of(tmp_path, "a,b\n1," + "x" * 200_000)
    assert len(rows[0][1][1]) == 200_000


@pytest.mark.parametrize(
    ("rows", "complaints"),
    [
        (
            "1,pick up, then put down\n2,x\n3",
            ["2: 3 values, but 2 columns. Quote", "4: 1 value, but 2 columns"],
        ),
        ("1,x,\n2,y", ["2: 3 values, but 2 columns"]),
        ('1,x\n2,"y\n3,z\n4,w\n', ["3: a quote is opened, and never closed"]),
        ('1,x\n2,"y\n3,"z"\n', ["3: text follows a closing quote, or a quote is opened and not closed"]),
        ('1\n2,"y" z\n', ["2: 1 value, but", "3: text follows a closing quote"]),
    ],
)
def test_no_cell_is_dropped_in_silence(tmp_path: Path, rows: str, complaints: list[str]) -> None:
    _, _, refused = csv_of(tmp_path, f"a,b\n{rows}")
    assert len(refused) == len(complaints)
    for (line, message), complaint in zip(refused, complaints, strict=True):
        assert f"{line}: {message}".startswith(complaint)


def test_an_empty_csv_and_one_with_other_separators_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TextFileError, match=r"table\.csv is empty\. Its first line must name the columns"):
        csv_of(tmp_path, "\n\n")
    with pytest.raises(TextFileError, match=r"table\.csv has a quote in line 1 that is never closed"):
        csv_of(tmp_path, 'source,"label\na,b\n')
    with pytest.raises(TextFileError, match=r"columns are separated by ';'\. Separate them by commas"):
        csv_of(tmp_path, "source;label\na;b\n")


def test_parameters_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes("corpus: {manifest: größe.csv, root: /tmp}\n".encode())
    assert read_params(path).corpus.manifest == "größe.csv"
    path.write_bytes("corpus:\n  manifest: größe.csv\n".encode("cp1252"))
    with pytest.raises(TextFileError, match=r"params\.yaml: line 2 is not UTF-8"):
        read_params(path)
    path.write_bytes(b"corpus: [\n")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_params(path)
