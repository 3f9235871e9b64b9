"""Real media for tests, whose frames encode their own index: a sampling error shows.

A frame is a 4 x 4 grid of black and white squares: the 16 bits of its index, most significant first,
in raster order. `frame_index` reads them back through any lossy codec.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

GRID = 4

# Small and quick, with what makes decoding hard: B-frames, frames hidden or out of order, far keyframes.
ENCODER_OPTIONS = {
    "libx264": {"g": "12", "bf": "2"},
    "libx265": {"x265-params": "log-level=none:keyint=12:bframes=3:pools=none", "preset": "ultrafast"},
    "libvpx-vp9": {"g": "12", "cpu-used": "8", "deadline": "realtime"},
    "libsvtav1": {"g": "12", "preset": "8", "crf": "10", "svtav1-params": "lp=1"},
    "mpeg4": {"g": "12", "bf": "2"},
}


def index_frame(index: int, *, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """The frame (H, W, 3) uint8 that shows `index` (0 to 65535)."""
    bits = [(index >> bit) & 1 for bit in reversed(range(GRID * GRID))]
    squares = np.array(bits, dtype=np.uint8).reshape(GRID, GRID) * 255
    rows, columns = (np.arange(side) * GRID // side for side in size)
    grey = squares[rows[:, None], columns]  # (H, W)
    return np.repeat(grey[:, :, None], 3, axis=2)


def frame_index(pixels: np.ndarray) -> int:
    """The index that the frame (H, W, 3) shows; any size."""
    grey = pixels.astype(np.float64).mean(axis=2)
    index = 0
    for row in np.array_split(grey, GRID, axis=0):
        for square in np.array_split(row, GRID, axis=1):
            index = 2 * index + int(square.mean() > 127)
    return index


def write_video(
    path: Path,
    *,
    num_frames: int,
    size: tuple[int, int] = (64, 64),
    fps: int | Fraction = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    first_index: int = 0,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode frames that show first_index, first_index + 1, ...; the container follows from the suffix.

    `pts` (in units of `time_base`, default 1 / fps) gives other presentation times than 0, 1, 2, ...
    `options` go to the encoder, for example {"g": "5", "bf": "2"}: keyframe distance, B-frames.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        if time_base is not None:
            stream.codec_context.time_base = time_base
        for position in range(num_frames):
            frame = av.VideoFrame.from_ndarray(index_frame(first_index + position, size=size), format="rgb24")
            frame.pts = pts[position] if pts is not None else position
            frame.time_base = time_base if time_base is not None else 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_image(path: Path, *, index: int, size: tuple[int, int] = (64, 64)) -> Path:
    """An image file that shows `index`; the format follows from the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(index_frame(index, size=size)).save(path)
    return path


def write_image_folder(folder: Path, *, num_images: int, size: tuple[int, int] = (64, 64)) -> Path:
    """A folder with 0.png, 1.png, ..., 10.png, ...: natural order is not alphabetical order."""
    for index in range(num_images):
        write_image(folder / f"{index}.png", index=index, size=size)
    return folder
