"""Animated PNG, WebP and AVIF images: their frames have durations, as those of a video."""

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.frames.image_bytes import PNG, orientation, png_chunk, png_chunks, split
from pipeline.frames.images import explained, on_black, opened_image, over, to_pixels, turned
from pipeline.frames.limits import NotFramesError, check_frame_size, check_num_frames
from pipeline.frames.sampling import Wanted
from pipeline.manifest.files import IMAGE_FORMATS
from pipeline.settings.extract import Limits

_ANIMATED = ("AVIF", "PNG", "WEBP")
_DEFAULT_DURATION_MS = 100  # of a frame that has none, as browsers do
_CLEAR, _RESTORE = 1, 2  # what becomes of the place of a PNG's frame after its time; 0: it stays
_HEADER_END = 33  # of a PNG: its signature and the chunk IHDR
_SOURCE = 0  # a PNG's frame replaces what it covers; 1: it lies over it


def open_animation(path: Path, data: bytes, *, limits: Limits) -> "AnimatedPng | Animation | None":
    """The animation that an image's file holds; None for a still image. Raises NotFramesError."""
    if IMAGE_FORMATS[path.suffix.lower()] not in _ANIMATED:
        return None
    kind = AnimatedPng if data.startswith(PNG) else Animation
    return kind.open(path, data, limits=limits)


@dataclass(frozen=True, slots=True)
class Animation:
    """An animation whose frames Pillow puts together."""

    path: Path
    data: bytes
    orientation: int
    limits: Limits
    frame_seconds: np.ndarray  # (T,) float64, increasing, from 0

    @classmethod
    def open(cls, path: Path, data: bytes, *, limits: Limits) -> "Animation | None":
        """None for an image that does not move. Raises NotFramesError."""
        data, exif = split(data)
        with opened_image(path, data, limits=limits) as image:
            if not getattr(image, "is_animated", False):
                return None
            num_frames = int(getattr(image, "n_frames", 1))
            check_num_frames(path, num_frames, limits=limits)
            durations_ms = []
            for number in range(num_frames):
                image.seek(number)
                image.load()
                durations_ms.append(image.info.get("duration") or _DEFAULT_DURATION_MS)
            exif = exif or image.info.get("exif") or b""
        return cls(path, data, orientation(exif), limits, _times(durations_ms))

    def frames(self, positions: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The frames at `positions` (N,), increasing, as (H, W, 3) uint8 RGB. Raises NotFramesError."""
        with opened_image(self.path, self.data, limits=self.limits) as image:
            for position in positions.tolist():
                image.seek(position)
                yield turned(on_black(to_pixels(image)), self.orientation)


class _Frame(NamedTuple):
    """A frame of an animated PNG: its pixels as a PNG of its own, and what fcTL says of it."""

    png: bytes
    left: int
    top: int
    delay: int
    delay_unit: int  # of a second; 0: 100
    disposal: int
    blending: int

    @property
    def duration_ms(self) -> float:
        """How long the frame is shown; 100 ms where it does not say."""
        return self.delay / (self.delay_unit or 100) * 1000 or _DEFAULT_DURATION_MS


@dataclass(frozen=True, slots=True)
class AnimatedPng:
    """An animated PNG (https://www.w3.org/TR/png-3/#apng-frame-based-animation).

    Pillow decodes its frames, which are put together here: Pillow 13 takes a default picture that is no frame
    for one, blends half-transparent pixels too dark, and does not restore what a frame covered; FFmpeg 8
    gives wrong pixels below 8 bits (of 16 colours, say), and does not blend 16 bits.
    """

    path: Path
    limits: Limits
    height: int
    width: int
    orientation: int
    num_promised: int
    items: Sequence[_Frame]
    frame_seconds: np.ndarray  # (T,) float64, increasing, from 0

    @classmethod
    def open(cls, path: Path, data: bytes, *, limits: Limits) -> "AnimatedPng | None":
        """None for a PNG that does not move."""
        with explained(path, data):
            if data[12:16] != b"IHDR" or len(data) < _HEADER_END:
                return None
            width, height = struct.unpack_from(">II", data, 16)
            num_promised, items = _read_frames(data)
        if not items:
            return None
        check_frame_size(path, height=height, width=width, limits=limits)
        check_num_frames(path, num_promised, limits=limits)
        times = _times([item.duration_ms for item in items])
        return cls(path, limits, height, width, orientation(split(data)[1]), num_promised, items, times)

    def frames(self, positions: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The frames at `positions` (N,), increasing, as (H, W, 3) uint8 RGB. Raises NotFramesError."""
        canvas = np.zeros((self.height, self.width, 3), np.uint8)  # on black, where opacity does not matter
        wanted = set(positions.tolist())
        for number, item in enumerate(self.items[: positions[-1] + 1]):
            with opened_image(self.path, item.png, limits=self.limits) as image:
                pixels = to_pixels(image)
            height, width, _ = pixels.shape
            area = canvas[item.top : item.top + height, item.left : item.left + width]
            if area.shape[:2] != (height, width):
                raise NotFramesError(self.path, f"frame {number} lies outside of the picture")
            before = area.copy()
            area[:] = on_black(pixels) if item.blending == _SOURCE else over(pixels, before)
            if number in wanted:
                yield turned(canvas.copy(), self.orientation)
            if item.disposal == _CLEAR:
                area[:] = 0
            elif item.disposal == _RESTORE:
                area[:] = before

    def check_end(self, wanted: Wanted) -> None:
        """Raise NotFramesError when the file ends before the wanted frames do."""
        if len(self.items) < self.num_promised and wanted.reaches_beyond(self.frame_seconds[-1]):
            raise NotFramesError(self.path, f"it has {len(self.items)} of {self.num_promised} frames")


def _read_frames(data: bytes) -> tuple[int, list[_Frame]]:
    """How many frames a PNG promises, and those that it has; none where it is a still picture."""
    num_frames = 0
    shared = b""  # chunks that belong to every frame: PLTE, tRNS
    found: list[tuple[bytes, list[bytes]]] = []  # what is said of each frame, and its pixels
    for name, body, _ in png_chunks(data):
        if name == b"IHDR":
            header = body
        elif name in (b"PLTE", b"tRNS"):
            shared += png_chunk(name, body)
        elif name == b"acTL":
            num_frames = int.from_bytes(body[:4])
        elif name == b"fcTL":
            found.append((body, []))
        elif name in (b"IDAT", b"fdAT"):
            if not num_frames:
                break
            if found:  # else the default picture is no frame
                found[-1][1].append(body if name == b"IDAT" else body[4:])
    frames = []
    for control, parts in found[:num_frames]:
        place = struct.unpack_from(">12xIIHHBB", control)
        chunks = png_chunk(b"IHDR", control[4:12] + header[8:]) + shared + png_chunk(b"IDAT", b"".join(parts))
        frames.append(_Frame(PNG + chunks, *place))
    return num_frames, frames


def _times(durations_ms: Sequence[float]) -> np.ndarray:
    """When each frame is shown (T,), in seconds."""
    return np.cumsum([0, *durations_ms[:-1]]) / 1000
