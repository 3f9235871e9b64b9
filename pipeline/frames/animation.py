"""Animated PNG, WebP and AVIF: videos whose frames have durations."""

import struct
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.frames.image_bytes import PNG, orientation, png_chunk, png_chunks, split
from pipeline.frames.images import explained, on_black, opened, over, read_bytes, to_pixels, turned
from pipeline.frames.limits import Limits, NotFramesError, check_frame_size, check_num_frames

_DEFAULT_DURATION_MS = 100  # of a frame that has none, as browsers do
_CLEAR, _RESTORE = 1, 2  # what becomes of the place of a PNG's frame after its time; 0: it stays
_SOURCE = 0  # a PNG's frame replaces what it covers; 1: it lies over it


def open_animation(path: Path, *, limits: Limits) -> "AnimatedPng | Animation | None":
    """None for an image that does not move, and for other formats. Raises NotFramesError, OSError."""
    if path.suffix.lower() not in (".avif", ".png", ".webp"):
        return None
    data = read_bytes(path, limits=limits)
    return (
        AnimatedPng.open(path, data, limits=limits)
        if data.startswith(PNG)
        else Animation.open(path, data, limits=limits)
    )


@dataclass(frozen=True, slots=True)
class Animation:
    """An animation whose frames Pillow puts together."""

    path: Path
    data: bytes
    orientation: int
    limits: Limits
    pts_seconds: np.ndarray  # (T,) float64, increasing, from 0

    @classmethod
    def open(cls, path: Path, data: bytes, *, limits: Limits) -> "Animation | None":
        data, exif = split(data)
        with opened(path, data, limits=limits) as image:
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
        with opened(self.path, self.data, limits=self.limits) as image:
            for position in positions.tolist():
                image.seek(position)
                yield turned(on_black(to_pixels(image)), self.orientation)


class _Frame(NamedTuple):
    """Where a frame of an animated PNG goes on the canvas, and how; and its pixels as a PNG of its own."""

    top: int
    left: int
    height: int
    width: int
    duration_ms: float
    disposal: int
    blending: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AnimatedPng:
    """An animated PNG (https://www.w3.org/TR/png-3/#apng-frame-based-animation).

    Pillow decodes its frames, which are put together here. Pillow 13 itself takes a default picture that is
    no frame for one, blends half-transparent pixels too dark, and does not restore what a frame covered.
    """

    path: Path
    limits: Limits
    height: int
    width: int
    orientation: int
    items: Sequence[_Frame]
    damage: str  # why there are fewer frames than the file promises; or empty
    pts_seconds: np.ndarray  # (T,) float64, increasing, from 0

    @classmethod
    def open(cls, path: Path, data: bytes, *, limits: Limits) -> "AnimatedPng | None":
        """None for a PNG that does not move."""
        with explained(path, data):
            width, height = struct.unpack_from(">II", data, 16)
            num_frames, items = _read_frames(data)
        if not items:
            return None
        check_frame_size(path, height=height, width=width, limits=limits)
        check_num_frames(path, num_frames, limits=limits)
        damage = f"it has {len(items)} of {num_frames} frames" if len(items) < num_frames else ""
        times = _times([item.duration_ms for item in items])
        return cls(path, limits, height, width, orientation(split(data)[1]), items, damage, times)

    def frames(self, positions: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The frames at `positions` (N,), increasing, as (H, W, 3) uint8 RGB.

        Raises NotFramesError when one is damaged, and after the last when more are known to be missing.
        """
        canvas = np.zeros((self.height, self.width, 3), np.uint8)  # on black, where opacity does not matter
        wanted = set(positions.tolist())
        for number, item in enumerate(self.items[: positions[-1] + 1]):
            with opened(self.path, item.data, limits=self.limits) as image:
                pixels = to_pixels(image)
            area = canvas[item.top : item.top + item.height, item.left : item.left + item.width]
            if area.shape[:2] != pixels.shape[:2]:
                raise NotFramesError(self.path, f"frame {number} lies outside of the picture")
            before = area.copy()
            area[:] = on_black(pixels) if item.blending == _SOURCE else over(pixels, before)
            if number in wanted:
                yield turned(canvas.copy(), self.orientation)
            if item.disposal == _CLEAR:
                area[:] = 0
            elif item.disposal == _RESTORE:
                area[:] = before
        self.check_end()

    def check_end(self) -> None:
        """Raise NotFramesError when there are fewer frames than the file promises."""
        if self.damage:
            raise NotFramesError(self.path, self.damage)


def _read_frames(data: bytes) -> tuple[int, list[_Frame]]:
    """How many frames a PNG promises, and those that it has; none where it is one still picture."""
    num_frames = 0
    shared: list[tuple[bytes, bytes]] = []  # chunks that belong to every frame: PLTE, tRNS
    controls: list[bytes] = []
    pixels: list[list[bytes]] = []  # of each control's frame
    is_hidden = False  # the default picture is no frame
    for name, body, _ in png_chunks(data):
        if name == b"IHDR":
            header = body
        elif name in (b"PLTE", b"tRNS"):
            shared.append((name, body))
        elif name == b"acTL":
            (num_frames,) = struct.unpack_from(">I", body)
        elif name == b"fcTL":
            controls.append(body)
            pixels.append([])
        elif name == b"fdAT" and pixels:
            pixels[-1].append(body[4:])
        elif name == b"IDAT":
            if not num_frames:
                return 0, []
            if pixels:
                pixels[-1].append(body)
            is_hidden = not pixels
    if num_frames == 1 and not is_hidden:
        return 0, []
    frames = []
    for control, parts in zip(controls[:num_frames], pixels, strict=False):
        width, height, left, top, delay, unit, disposal, blending = struct.unpack_from(">4xIIIIHHBB", control)
        chunks = [
            (b"IHDR", struct.pack(">II", width, height) + header[8:]),
            *shared,
            *((b"IDAT", part) for part in parts),
            (b"IEND", b""),
        ]
        png = PNG + b"".join(png_chunk(name, body) for name, body in chunks)
        duration_ms = delay / (unit or 100) * 1000 or _DEFAULT_DURATION_MS
        frames.append(_Frame(top, left, height, width, duration_ms, disposal, blending, png))
    return num_frames, frames


def _times(durations_ms: Sequence[float]) -> np.ndarray:
    """When each frame is shown (T,), in seconds."""
    return np.cumsum([0, *durations_ms[:-1]]) / 1000
