"""Images as frames: one image, a list of them, or a folder in natural order."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.contract import Sampling
from pipeline.errors import DecodeError
from pipeline.frames.sampling import sample_indices

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def is_image(path: Path) -> bool:
    """Whether the file's name is an image's (an animated .gif is a video)."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def images_in_folder(folder: Path) -> tuple[Path, ...]:
    """The folder's images in natural order: 2.png comes before 10.png. Hidden files do not count."""
    images = [path for path in folder.iterdir() if is_image(path) and not path.name.startswith(".")]
    return tuple(sorted(images, key=_natural))


def _natural(path: Path) -> tuple[list[tuple[str, int]], str]:
    parts = re.findall(r"(\D*)(\d*)", path.name)
    return [(text, int(digits or -1)) for text, digits in parts], path.name


def read_images(
    paths: Sequence[Path],
    *,
    sampling: Sampling,
    start_seconds: float | None,
    end_seconds: float | None,
    image_fps: float,
) -> Iterator[tuple[np.ndarray, float]]:
    """The sampled images as ((H, W, 3) uint8, pts_seconds); image i is shown at i / image_fps seconds."""
    pts_seconds = np.arange(len(paths)) / image_fps
    indices = sample_indices(
        pts_seconds, sampling=sampling, start_seconds=start_seconds, end_seconds=end_seconds
    )
    last_index = -1
    for num_recovered, index in enumerate(indices):
        if index != last_index:  # a slower source repeats its frames
            try:
                pixels = read_image(paths[index])
            except DecodeError as error:
                error.num_recovered = num_recovered
                raise
        last_index = index
        yield pixels, float(pts_seconds[index])


def read_image(path: Path) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB as a viewer shows it, on black where it is transparent.

    The EXIF orientation is applied; 16-bit grey is scaled so that white stays white.

    Raises DecodeError when the bytes are not an image, OSError when they can't be read.
    """
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            return np.array(_to_rgb(ImageOps.exif_transpose(image)))
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # from memory nothing but the bytes can be wrong, and PIL's codecs raise any type
        raise DecodeError(f"{path} can't be decoded as an image: {error}. Replace the file.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, in 16 or 32
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floats, whose range is unknown")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")
