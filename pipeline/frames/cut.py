"""Whether a file ends before its headers say: AVI, Matroska and WebM files without their end decode well."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_SEGMENT = b"\x18\x53\x80\x67"
_CLUSTER = b"\x1f\x43\xb6\x75"
_HEAD_BYTES = 12  # an element's identifier and size, at most


@dataclass(frozen=True, slots=True)
class Claim:
    """What a file's headers say of its size."""

    size_bytes: int  # of the file
    missing_bytes: int = 0  # that the headers promise beyond it
    is_cut: bool = False  # a part that holds frames goes on beyond it; else a header alone may be wrong

    def as_reason(self) -> str | None:
        """None where nothing is missing."""
        if not self.missing_bytes:
            return None
        return f"it ends after {self.size_bytes} of {self.size_bytes + self.missing_bytes} bytes"


def read_claim(path: Path) -> Claim:
    """AVI: RIFF chunks. Matroska and WebM: EBML elements (RFC 8794, RFC 9559). Others promise nothing."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4)
        if head == b"RIFF":
            parts = _riff_parts(file, size_bytes)
        elif head == b"\x1a\x45\xdf\xa3":
            parts = _matroska_parts(file, size_bytes)
        else:
            return Claim(size_bytes)
        ends = list(parts)
    promised = max((end for end, _ in ends), default=0)
    is_cut = any(holds_frames and end > size_bytes for end, holds_frames in ends)
    return Claim(size_bytes, max(0, promised - size_bytes), is_cut)


def _riff_parts(file: BinaryIO, size_bytes: int) -> Iterator[tuple[int, bool]]:
    """Where a file's RIFF chunk and the chunks in it end, and which of them holds frames."""
    file.seek(4)
    size = int.from_bytes(file.read(4), "little")
    if size == 0xFFFFFFFF:  # it was written into a pipe
        return
    yield 8 + size, False
    at = 12
    while at < size_bytes:
        file.seek(at)
        name, size, kind = file.read(4), int.from_bytes(file.read(4), "little"), file.read(4)
        yield at + 8 + size, (name, kind) == (b"LIST", b"movi")
        at += 8 + size + size % 2


def _matroska_parts(file: BinaryIO, size_bytes: int) -> Iterator[tuple[int, bool]]:
    """Where a file's segment and the elements in it end, and which of them holds frames."""
    _, start, size = _element(file, 0)
    name, at, size = _element(file, start + (size or 0))
    if name != _SEGMENT or size is None:  # a size that is unknown, as in live recordings, promises nothing
        return
    yield at + size, False
    while at < size_bytes:
        name, start, size = _element(file, at)
        if size is None:
            return
        at = start + size
        yield at, name == _CLUSTER


def _element(file: BinaryIO, at: int) -> tuple[bytes, int, int | None]:
    """An element's identifier, where its content begins, and its size; None if that is unknown."""
    file.seek(at)
    head = file.read(_HEAD_BYTES)
    name = head[: _width(head[:1])]
    field = head[len(name) :]
    width = _width(field[:1])
    all_ones = (1 << 7 * width) - 1
    size = int.from_bytes(field[:width], "big") & all_ones
    return name, at + len(name) + width, None if size == all_ones else size


def _width(first: bytes) -> int:
    """How many bytes a number has whose first byte this is: one more than its leading zeros."""
    return 9 - int.from_bytes(first, "big").bit_length()
