"""Images as frames: one image, a list of them, a folder in natural order, or an animation."""

import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.frames.limits import Limits, NotFramesError, check_frame_size, check_num_frames

# What image files are in truth. PIL knows more formats, some of which run other programs.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")

# PIL's own guard warns (from any thread, once) and can't be raised for one file: Limits takes its place.
Image.MAX_IMAGE_PIXELS = None

_MAX_PIXEL_BYTES = 8  # as stored: four channels of 16 bits

_DEFAULT_DURATION_MS = 100  # of an animation's frame that has none, as browsers do


@dataclass(frozen=True, slots=True)
class Images:
    """Images shown one after the other, each for an equal time. Of several pages the first counts."""

    paths: Sequence[Path]
    limits: Limits
    pts_seconds: np.ndarray  # (T,) float64

    @classmethod
    def open(cls, paths: Sequence[Path], *, image_fps: float, limits: Limits) -> "Images":
        check_num_frames(paths[0].parent, len(paths), limits=limits)
        return cls(paths, limits, np.arange(len(paths)) / image_fps)

    def frames(self, positions: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The images at `positions` (N,), as (H, W, 3) uint8 RGB. Raises NotFramesError."""
        for position in positions.tolist():
            with _opened(self.paths[position], limits=self.limits) as image:
                pixels = _to_rgb(image)
            yield pixels


@dataclass(frozen=True, slots=True)
class Animation:
    """An animated WebP or PNG: a video whose frames have durations."""

    path: Path
    limits: Limits
    pts_seconds: np.ndarray  # (T,) float64, increasing, from 0

    @classmethod
    def open(cls, path: Path, *, limits: Limits) -> "Animation | None":
        """None for an image that does not move."""
        if path.suffix.lower() not in (".png", ".webp"):
            return None
        with _opened(path, limits=limits) as image:
            if not getattr(image, "is_animated", False):
                return None
            num_frames = int(getattr(image, "n_frames", 1))
            check_num_frames(path, num_frames, limits=limits)
            durations_ms = []
            for number in range(num_frames):
                image.seek(number)
                image.load()
                durations_ms.append(image.info.get("duration") or _DEFAULT_DURATION_MS)
        return cls(path, limits, np.cumsum([0, *durations_ms[:-1]]) / 1000)

    def frames(self, positions: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The frames at `positions` (N,), increasing, as (H, W, 3) uint8 RGB. Raises NotFramesError."""
        with _opened(self.path, limits=self.limits) as image:
            for position in positions.tolist():
                image.seek(position)
                yield _to_rgb(image)


@contextmanager
def _opened(path: Path, *, limits: Limits) -> Iterator[Image.Image]:
    """The image, of which only the header was read yet. What goes wrong in the block is a NotFramesError."""
    size_bytes = path.stat().st_size
    check_frame_size(path, height=1, width=size_bytes // _MAX_PIXEL_BYTES, limits=limits)
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            check_frame_size(path, height=image.height, width=image.width, limits=limits)
            yield image
    except (NotFramesError, MemoryError):
        raise
    except Exception as error:  # from memory nothing but the bytes can be wrong, and PIL raises any type
        raise NotFramesError(path, str(error)) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 as a viewer shows it, on black where it is transparent; 16-bit white stays white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, in 16 or 32
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floats, whose range is unknown")
    if image.has_transparency_data:
        return on_black(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))


def on_black(pixels: np.ndarray) -> np.ndarray:
    """RGBA (H, W, 4) uint8 composited on black: (H, W, 3) uint8, rounded."""
    product = pixels[..., :3].astype(np.uint16) * pixels[..., 3:]  # (H, W, 3)
    rounded: np.ndarray = (product + 127) // 255
    return rounded.astype(np.uint8)
