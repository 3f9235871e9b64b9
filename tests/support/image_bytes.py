"""Image files made byte by byte: chunks, segments and tags that no encoder writes."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
HEADER_BYTES = len(SIGNATURE) + 25  # to the end of IHDR

TURN_RIGHT = 6  # EXIF's orientation of a camera that was held upright


def encoded(pixels: np.ndarray, format: str, **options: object) -> bytes:  # noqa: A002
    """(H, W, 3) uint8 as a file."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def decoded(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 as Pillow decodes it, not turned."""
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def chunk(name: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    """A chunk of a PNG."""
    right = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", right if crc is None else crc)


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def tiff(entries: Sequence[tuple[int, int, int, bytes]], *, order: str = "<", tail: bytes = b"") -> bytes:
    """A TIFF, as EXIF is one: entries (tag, type, count, four bytes), then `tail`."""
    parts = [struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries]
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(f"{order}IH", 8, len(parts)) + b"".join(parts) + bytes(4) + tail


def turned_exif(*others: tuple[int, int, int, bytes]) -> bytes:
    """EXIF that wants a turn to the right, and other entries."""
    return b"Exif\0\0" + tiff(sorted([(0x112, 3, 1, struct.pack("<HH", TURN_RIGHT, 0)), *others]))


def tiff_image(pixels: np.ndarray, *others: tuple[int, int, int, bytes]) -> bytes:
    """(H, W, 3) uint8 as an uncompressed TIFF, with other entries."""
    height, width, _ = pixels.shape

    def short(value: int) -> bytes:
        return struct.pack("<HH", value, 0)

    start = 8 + 2 + 12 * (9 + len(others)) + 4
    entries = [
        (0x100, 3, 1, short(width)),
        (0x101, 3, 1, short(height)),
        (0x102, 3, 3, struct.pack("<I", start)),
        (0x103, 3, 1, short(1)),
        (0x106, 3, 1, short(2)),
        (0x111, 4, 1, struct.pack("<I", start + 6)),
        (0x115, 3, 1, short(3)),
        (0x116, 4, 1, struct.pack("<I", height)),
        (0x117, 4, 1, struct.pack("<I", pixels.size)),
        *others,
    ]
    return tiff(sorted(entries), tail=struct.pack("<HHH", 8, 8, 8) + pixels.tobytes())


@dataclass(frozen=True)
class PngFrame:
    """A frame of an animated PNG: RGBA pixels (h, w, 4) at (top, left)."""

    pixels: np.ndarray
    top: int = 0
    left: int = 0
    disposal: int = 0  # 0 stays, 1 clears, 2 restores
    blending: int = 0  # 0 replaces, 1 lies over
    delay: tuple[int, int] = (1, 5)


def animated_png(frames: Sequence[PngFrame], *, hidden: np.ndarray | None = None) -> bytes:
    """The first frame has the canvas' size; `hidden` (H, W, 4) is a default picture that is no frame."""
    height, width, _ = frames[0].pixels.shape
    parts = [
        SIGNATURE,
        chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)),
        chunk(b"acTL", struct.pack(">II", len(frames), 0)),
    ]
    if hidden is not None:
        parts.append(chunk(b"IDAT", _rows(hidden)))
    number = 0
    for frame in frames:
        place = (frame.pixels.shape[1], frame.pixels.shape[0], frame.left, frame.top)
        how = (*frame.delay, frame.disposal, frame.blending)
        parts.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, *place, *how)))
        if number == 0 and hidden is None:
            parts.append(chunk(b"IDAT", _rows(frame.pixels)))
            number += 1
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", number + 1) + _rows(frame.pixels)))
            number += 2
    return b"".join([*parts, chunk(b"IEND", b"")])


def _rows(pixels: np.ndarray) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
