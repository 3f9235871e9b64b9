"""An image file's bytes without its metadata, which then can't keep a decoder from the pixels.

Colour profiles, texts and previews decide no pixel here; of EXIF the orientation alone counts, and
`orientation` reads it from what `split` sets apart. https://www.w3.org/TR/png-3/#5DataRep,
https://www.w3.org/Graphics/JPEG/itu-t81.pdf (annex B), https://developers.google.com/speed/webp/docs/riff_container
"""

import re
import struct
import zlib
from collections.abc import Iterator

PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8"

_RAW_PROFILE = b"Raw profile type exif\0"  # how ImageMagick kept EXIF in PNG before there was eXIf
_MAX_PROFILE_BYTES = 1 << 20

_NO_SEGMENT = frozenset([0x01, *range(0xD0, 0xD9)])  # JPEG markers without a length: TEM, RST0-7, SOI
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MANY_ZEROS = 16
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)

_WEBP_PIXELS = frozenset([b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"])

# A HEIF file's entry of an item that is EXIF: version and flags, number, protection, type.
_EXIF_ITEM = re.compile(rb"(infe(?:\x02.{7}|\x03.{9}))Exif", re.DOTALL)

# Tags of a TIFF that say where and how its pixels are stored, and the orientation.
_TIFF_PIXELS = frozenset([*range(254, 267), 273, 274, *range(277, 280), *range(284, 294), 317, 318, 319, 320])
_TIFF_PIXELS |= {*range(322, 326), 332, 333, 334, 336, *range(338, 348), *range(512, 533)}

_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # types of EXIF values


def split(data: bytes) -> tuple[bytes, bytes]:
    """The file without metadata, and its EXIF (empty where there is none, or in another format)."""
    if data.startswith(PNG):
        return _split_png(data)
    if data.startswith(_JPEG):
        return _split_jpeg(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _split_webp(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _without_tiff_tags(data), b""  # Pillow turns a TIFF by itself
    if data[4:8] == b"ftyp":  # AVIF and HEIC have their turn elsewhere
        return _EXIF_ITEM.sub(rb"\1skip", data), b""
    return data, b""


def orientation(exif: bytes) -> int:
    """From 1 (upright) to 8, as EXIF has it; 1 where it says nothing that can be read."""
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        if order is None:
            return 1
        (first,) = struct.unpack_from(f"{order}4xI", exif)
        (count,) = struct.unpack_from(f"{order}H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == _ORIENTATION and kind in _INTEGERS:
                (value,) = struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it is cut
        pass
    return 1


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(name, body, the whole chunk as it stands) up to the end of the image or of the file."""
    position = len(PNG)
    while position + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + size
        yield name, data[position + 8 : end - 4], data[position:end]
        if name == b"IEND":
            return
        position = end


def png_chunk(name: bytes, body: bytes) -> bytes:
    """The chunk as it stands in a file: size, name, body, checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _split_png(data: bytes) -> tuple[bytes, bytes]:
    """Critical chunks (their names begin with a capital) and transparency; an animation's still picture."""
    kept, exif = [PNG], b""
    for name, body, chunk in png_chunks(data):
        if name[:1].isupper():
            kept.append(chunk)
        elif name == b"tRNS":
            kept.append(png_chunk(name, body))  # like FFmpeg, whatever its checksum says
        elif name == b"eXIf" or (name in (b"tEXt", b"zTXt") and body.startswith(_RAW_PROFILE)):
            exif = exif or (body if name == b"eXIf" else _raw_profile(name, body))
    return b"".join(kept), exif


def _raw_profile(name: bytes, body: bytes) -> bytes:
    """EXIF of a text that holds, in lines: its name, its size, its bytes in hexadecimal."""
    text = body[len(_RAW_PROFILE) :]
    try:
        if name == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], _MAX_PROFILE_BYTES)
        return bytes.fromhex("".join(text.decode("ascii").split("\n")[3:]))
    except (zlib.error, ValueError):
        return b""


def _split_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """All but APPn and comments, of which libjpeg reads JFIF's and Adobe's, for the colours."""
    kept, exif = [data[:2]], b""
    for marker, start, end in _segments(data, 2):
        body = data[start + 4 : end]
        if marker == _START_OF_SCAN:
            kept.append(data[start:])
            break
        is_colour = (marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14) or (
            marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12
        )
        if is_colour or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[start:end])
        elif marker == 0xE1 and body.startswith(b"Exif\0"):
            exif = exif or body
    return b"".join(kept), exif


def _segments(data: bytes, position: int) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of a JPEG's segments from `position` on, up to the end of the image.

    What lies between segments, as pixels do behind the start of a scan, is passed over.
    """
    while match := _MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == _END_OF_IMAGE:
            return
        if marker not in _NO_SEGMENT:
            start = position - 2
            size = int.from_bytes(data[position : position + 2])
            position += max(size, 2)
            yield marker, start, position


def jpeg_without_end(data: bytes) -> bytes | None:
    """A JPEG up to where its pixels end, if it has no end marker; None if it has one, or no pixels.

    Behind the pixels there may be half a marker or zeros: of a camera's block, or a download that stopped.
    A few zeros may be pixels.
    """
    scans = (start for marker, start, _ in _segments(data, 2) if marker == _START_OF_SCAN)
    start = next(scans, None)
    if not data.startswith(_JPEG) or start is None or data.find(b"\xff\xd9", start) >= 0:
        return None
    pixels = data.rstrip(b"\0")
    if len(data) - len(pixels) < _MANY_ZEROS:
        return data.rstrip(b"\xff")
    return pixels + b"\0" if pixels.endswith(b"\xff") else pixels  # the byte 255 of pixels is FF 00


def has_all_scans(data: bytes) -> bool:
    """Whether a JPEG's scans are of all 64 coefficients of all components, to the last bit."""
    missing: dict[int, set[int]] = {}
    for marker, start, end in _segments(data, 2):
        body = data[start + 4 : end]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame's header
            missing = {component: set(range(64)) for component in body[6 : 6 + 3 * body[5] : 3]}
        elif marker == _START_OF_SCAN and body:
            first, last, bits = body[1 + 2 * body[0] :][:3]
            if not bits & 15:
                for component in body[1 : 1 + 2 * body[0] : 2]:
                    missing.get(component, set()).difference_update(range(first, last + 1))
    return not any(missing.values())


def _without_tiff_tags(data: bytes) -> bytes:
    """A TIFF whose first page has the tags of its pixels alone, and which has no other page."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (first,) = struct.unpack_from(f"{order}4xI", data)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        entries = [data[place : place + 12] for place in range(first + 2, first + 2 + 12 * count, 12)]
        kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_PIXELS]
    except struct.error:  # it is cut
        return data
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept)
    end = first + 2 + 12 * count + 4
    return data[:first] + directory.ljust(end - first, b"\0") + data[end:]


def _split_webp(data: bytes) -> tuple[bytes, bytes]:
    """The chunks of pixels; what the file's header says of its size does not count."""
    kept, exif, position = [b"WEBP"], b"", 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        end = position + 8 + size + size % 2
        if name in _WEBP_PIXELS:
            kept.append(data[position:end])
        elif name == b"EXIF":
            exif = exif or data[position + 8 : end]
        position = end
    body = b"".join(kept)
    return b"RIFF" + struct.pack("<I", len(body)) + body, exif
