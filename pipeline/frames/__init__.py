"""Frames of a clip: RGB pixels with their presentation times, from a video, images or a folder of images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.contract import Sampling
from pipeline.errors import DecodeError
from pipeline.frames.images import images_in_folder, is_image, read_images
from pipeline.frames.video import read_video

__all__ = ["FrameBatch", "read_frames", "source_files"]


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Consecutive sampled frames of one size."""

    pixels: np.ndarray  # (T, H, W, 3) uint8 RGB, C-contiguous
    pts_seconds: np.ndarray  # (T,) float64, from the first frame of the whole source


def source_files(path: Path) -> tuple[Path, ...]:
    """The files that a source consists of: itself, or a folder's images in natural order.

    Raises DecodeError for a folder without images.
    """
    if not path.is_dir():
        return (path,)
    images = images_in_folder(path)
    if not images:
        raise DecodeError(f"{path} has no images: a folder is a clip when it holds .png, .jpg, ... files.")
    return images


def read_frames(
    paths: Sequence[Path],
    *,
    sampling: Sampling,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    image_fps: float = 1.0,
    batch_size: int = 16,
) -> Iterator[FrameBatch]:
    """The sampled frames of one video, one folder of images, or one or several images.

    Only frames with start_seconds <= pts < end_seconds are used. Images are shown for 1 / image_fps
    seconds each. A batch has at most `batch_size` frames, fewer where images of another size follow.
    No more than a batch is in memory.

    Raises DecodeError (naming the file, with the number of frames recovered) when the bytes are not
    the frames that they promise to be or none lies in the range; OSError when they can't be read.
    """
    files = [file for path in paths for file in source_files(path)]
    if len(files) == 1 and not is_image(files[0]):
        frames = read_video(files[0], sampling=sampling, start_seconds=start_seconds, end_seconds=end_seconds)
    elif all(is_image(file) for file in files):
        frames = read_images(
            files,
            sampling=sampling,
            start_seconds=start_seconds,
            end_seconds=end_seconds,
            image_fps=image_fps,
        )
    else:
        names = ", ".join(str(file) for file in files)
        raise DecodeError(f"{names}: a clip is one video or several images. Make each video its own clip.")
    num_frames = 0
    for batch in _batches(frames, batch_size=batch_size):
        num_frames += len(batch.pixels)
        yield batch
    if num_frames == 0:
        raise DecodeError(
            f"{paths[0]} shows no frame from {start_seconds or 0} to {end_seconds or 'its end'} s. "
            "Correct start_seconds and end_seconds in the manifest."
        )


def _batches(frames: Iterator[tuple[np.ndarray, float]], *, batch_size: int) -> Iterator[FrameBatch]:
    pixels: list[np.ndarray] = []
    pts_seconds: list[float] = []
    for frame, seconds in frames:
        if pixels and (len(pixels) == batch_size or frame.shape != pixels[0].shape):
            yield FrameBatch(np.stack(pixels), np.array(pts_seconds))
            pixels, pts_seconds = [], []
        pixels.append(frame)
        pts_seconds.append(seconds)
    if pixels:
        yield FrameBatch(np.stack(pixels), np.array(pts_seconds))
