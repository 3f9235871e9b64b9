"""Images as frames: one image, or several in order. Pixels are as a viewer shows them."""

import io
import re
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.frames.foreign import foreign_kind
from pipeline.frames.image_bytes import has_all_scans, jpeg_without_end, orientation, split
from pipeline.frames.limits import NotFramesError, check_file_size, check_frame_size, check_num_frames
from pipeline.manifest.files import IMAGE_FORMATS
from pipeline.settings.extract import Limits

with suppress(ImportError):  # HEIC, for those who have it
    from pillow_heif import register_heif_opener

    register_heif_opener()

# What image files are in truth. PIL knows more formats, some of which run other programs.
Image.init()
_FORMATS: list[str] = [name for name in dict.fromkeys((*IMAGE_FORMATS.values(), "GIF")) if name in Image.OPEN]

_JPEG_END = b"\xff\xd9"


class _WithoutGuard:
    """While any thread is in the block, PIL does not limit the size of images: `Limits` does, for each file.

    PIL's own limit, Image.MAX_IMAGE_PIXELS, is the process's, and warns once. It is back after the block.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_inside = 0
        self._max_pixels: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._num_inside:
                self._max_pixels, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num_inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_inside -= 1
            if not self._num_inside:
                Image.MAX_IMAGE_PIXELS = self._max_pixels


_without_guard = _WithoutGuard()


@dataclass(frozen=True, slots=True)
class Images:
    """Images shown one after the other, each for an equal time. Of several pages, the first is shown."""

    paths: Sequence[Path]
    limits: Limits
    frame_seconds: np.ndarray  # (T,) float64
    data: bytes | None  # the content of a single image

    @classmethod
    def open(cls, paths: Sequence[Path], data: bytes | None, *, image_fps: float, limits: Limits) -> "Images":
        """Images that are shown for 1 / image_fps seconds each.

        `data` is what a single image's file holds. Raises NotFramesError for more images than the limits
        allow.
        """
        check_num_frames(paths[0].parent, len(paths), limits=limits)
        return cls(paths, limits, np.arange(len(paths)) / image_fps, data)

    def frames(self, positions: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The images at `positions` (N,), as (H, W, 3) uint8 RGB. Raises NotFramesError."""
        for position in positions.tolist():
            path = self.paths[position]
            data, exif = split(read_bytes(path, limits=self.limits) if self.data is None else self.data)
            with opened_image(path, data, limits=self.limits) as image:
                pixels = on_black(to_pixels(image))
                exif = exif or image.info.get("exif") or b""  # AVIF's turn, told as EXIF; TIFF turns itself
            yield turned(pixels, orientation(exif))


def read_bytes(path: Path, *, limits: Limits) -> bytes:
    """The file. Raises NotFramesError for one that is larger than any frame within the limits."""
    check_file_size(path, path.stat().st_size, limits=limits)
    return path.read_bytes()


@contextmanager
def opened_image(path: Path, data: bytes, *, limits: Limits) -> Iterator[Image.Image]:
    """The image in `data`, of which only the header was read yet; a JPEG that only lacks its end has it.

    What goes wrong in the block is a NotFramesError.
    """
    with explained(path, data):
        if (pixels := jpeg_without_end(data)) is not None:
            data = _with_end(path, pixels, limits=limits)
        with _open(path, data, limits=limits) as image:
            yield image


@contextmanager
def explained(path: Path, data: bytes) -> Iterator[None]:
    """Makes a NotFramesError, in words, of what PIL raises about `data`."""
    try:
        yield
    except (NotFramesError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        if fault := foreign_kind(data, is_image=True):
            raise NotFramesError(path, f"it {fault.reason}", remedy=fault.remedy) from error
        raise NotFramesError(path, "its bytes are not an image's") from error
    except Exception as error:  # from memory nothing but the bytes can be wrong, and PIL raises any type
        said = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", str(error))
        is_sentence = isinstance(error, OSError | SyntaxError | ValueError | EOFError) and said
        raise NotFramesError(path, said if is_sentence else f"{type(error).__name__} {said}") from error


def _open(path: Path, data: bytes, *, limits: Limits) -> Image.Image:
    with _without_guard:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    check_frame_size(path, height=image.height, width=image.width, limits=limits)
    return image


def _with_end(path: Path, data: bytes, *, limits: Limits) -> bytes:
    """A JPEG without an end marker, with one. Raises NotFramesError when pixels are missing as well.

    libjpeg fills missing pixels with grey and only warns, which PIL does not pass on. But pixels that
    are there do not depend on what follows them.
    """

    def decoded(filler: bytes) -> bytes:
        with _open(path, data + filler + _JPEG_END, limits=limits) as image:
            return image.tobytes()

    try:
        is_cut = len({decoded(filler) for filler in (b"", *map(_filler, range(3)))}) > 1
    except OSError:  # it can't be decoded at all
        is_cut = True
    if is_cut or not has_all_scans(data):
        raise NotFramesError(path, "its pixels end too early: the file is cut")
    return data + _JPEG_END


def _filler(start: int) -> bytes:
    """What a JPEG's decoder takes for pixels, whether it waits for bytes or for one of eight markers.

    What one filler gives by chance is not what all three do: other bits, and another marker to begin with.
    """
    filler = bytes((0xAA + 0x21 * start + 37 * position) % 0xFF for position in range(512))  # none is 255
    markers = (bytes([0xFF, 0xD0 + (number + 3 * start) % 8]) for number in range(8))
    return filler + b"".join(marker + filler for marker in markers)


def to_pixels(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8, or (H, W, 4) with opacity where it may be transparent; 16-bit white stays white."""
    with _without_guard:
        image.load()
    if image.mode.startswith("I"):  # 16 bits of grey, in 16 or 32
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floats, whose range is unknown")
    return np.array(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def on_black(pixels: np.ndarray) -> np.ndarray:
    """RGB as it is; RGBA (H, W, 4) uint8 composited on black: (H, W, 3) uint8, rounded."""
    return over(pixels, np.zeros((), np.uint8))


def over(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """RGB as it is; RGBA (H, W, 4) uint8 laid over an opaque ground (H, W, 3) uint8; rounded."""
    if pixels.shape[2] == 3:
        return pixels
    opacity = pixels[..., 3:].astype(np.uint16)
    rounded: np.ndarray = (pixels[..., :3] * opacity + ground * (255 - opacity) + 127) // 255  # (H, W, 3)
    return rounded.astype(np.uint8)


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, 3) as EXIF's orientation, 1 to 8, wants them shown: (H, W, 3) or (W, H, 3)."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # (W, H, 3)
    if orientation in (2, 3, 6, 7):
        pixels = np.flip(pixels, axis=1)
    if orientation in (3, 4, 7, 8):
        pixels = np.flip(pixels, axis=0)
    return np.ascontiguousarray(pixels)
