"""Pictures of a clip: a strip of its frames as WebP, and a small video as VP9 in WebM."""

import functools
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from pipeline.contract import Sampling
from pipeline.errors import DecodeError, error_text
from pipeline.frames import clip_range, read_frames
from pipeline.manifest import Clip
from pipeline.settings.extract import Limits

log = logging.getLogger(__name__)

_NUM_STRIP = 8  # frames of a strip, at most
_NUM_VIDEO = 96  # frames of a video, at most
_HEIGHTS = (96, 64, 48, 32)  # of a strip in pixels: the first that is small enough
_VIDEO_HEIGHTS = (160, 96, 64)
_WIDEST = 3  # times its height: a wider frame is made lower
_GAP = 2  # pixels between frames of a strip


@dataclass(frozen=True)
class Picture:
    """What a page shows of a clip. Without a strip, `reason` says why."""

    strip: bytes = b""  # WebP
    size: tuple[int, int] = (0, 0)  # (width, height) of the strip in pixels
    frame_seconds: tuple[float, ...] = ()  # of the strip's frames
    video: bytes = b""  # WebM
    video_size: tuple[int, int] = (0, 0)
    reason: str = ""
    frames: Sequence[Image.Image] = field(default=(), repr=False)  # of the strip, to draw on


def read_picture(
    clip: Clip,
    *,
    root: Path,
    sampling: Sampling,
    limits: Limits,
    strip_bytes: int,
    video_bytes: int = 0,
) -> Picture:
    """A strip of at most `strip_bytes` and, if `video_bytes` is not 0, a video of at most so many.

    The frames are some of those that extraction reads with this `sampling` and these `limits`. A clip that
    can't be read has a reason instead.
    """
    try:
        frames, seconds = _read(
            clip, root, _at_most(sampling, _NUM_VIDEO if video_bytes else _NUM_STRIP), limits
        )
    except (DecodeError, OSError, MemoryError) as error:
        return Picture(reason=error_text(error))
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(_NUM_STRIP, len(frames))).round().astype(int))
    shown = [frames[i] for i in chosen]
    strip, size = b"", (0, 0)
    for height in _HEIGHTS:
        image = _in_a_row(shown, height)
        strip = _webp(image)
        if len(strip) <= strip_bytes:
            size = image.size
            break
    else:
        return Picture(reason=f"its frames take more than the page's {strip_bytes} bytes a clip")
    video, video_size = b"", (0, 0)
    if video_bytes and len(frames) > 1 and has_encoder():
        for height in _VIDEO_HEIGHTS:
            data, found = _webm(frames, seconds, height)
            if len(data) <= video_bytes:
                video, video_size = data, found
                break
    return Picture(strip, size, tuple(seconds[i] for i in chosen), video, video_size, frames=shown)


@functools.cache
def has_encoder() -> bool:
    """Whether this PyAV has an encoder for VP9; the first call warns if it has not."""
    try:
        av.codec.Codec("libvpx-vp9", "w")
    except av.codec.codec.UnknownCodecError:
        log.warning("The page has no videos: this PyAV has no encoder libvpx-vp9.")
        return False
    return True


def strip_of(frames: Sequence[Image.Image], *, height: int) -> tuple[bytes, tuple[int, int]]:
    """Frames side by side as WebP, and its size (width, height) in pixels."""
    image = _in_a_row(frames, height)
    return _webp(image), image.size


def _at_most(sampling: Sampling, num_frames: int) -> Sampling:
    if sampling.count:
        return Sampling(count=min(sampling.count, num_frames))
    return sampling.model_copy(update={"max_frames": min(sampling.max_frames or num_frames, num_frames)})


def _read(
    clip: Clip, root: Path, sampling: Sampling, limits: Limits
) -> tuple[list[Image.Image], list[float]]:
    """The frames, at most as large as a page needs them, and their times in seconds."""
    frames, seconds = [], []
    for batch in read_frames(**clip_range(clip, root=root), sampling=sampling, batch_size=4, limits=limits):
        for pixels in batch.pixels:
            image = Image.fromarray(pixels)
            image.thumbnail((_WIDEST * _VIDEO_HEIGHTS[0], _VIDEO_HEIGHTS[0]))
            frames.append(image)
        seconds += batch.frame_seconds.tolist()
    return frames, seconds


def _in_a_row(frames: Sequence[Image.Image], height: int) -> Image.Image:
    """Frames side by side, at most `height` pixels high, in cells of the first one's shape."""
    width, height = _fitted(frames[0], height)
    row = Image.new("RGBA", ((width + _GAP) * len(frames) - _GAP, height))
    for number, frame in enumerate(frames):
        row.paste(frame.resize((width, height)), (number * (width + _GAP), 0))
    return row


def _fitted(frame: Image.Image, height: int, *, step: int = 1) -> tuple[int, int]:
    """(width, height) of a frame that is at most so high; multiples of `step`."""
    height = min(height, frame.height)
    width = frame.width * height / frame.height
    return max(step, round(width / step) * step), max(step, height // step * step)


def _webp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=2)
    return buffer.getvalue()


def _webm(
    frames: Sequence[Image.Image], seconds: Sequence[float], height: int
) -> tuple[bytes, tuple[int, int]]:
    """A video that shows each frame at its time, and its size (width, height) in pixels."""
    width, height = _fitted(frames[0], height, step=2)  # half of the pixels have a colour of their own
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            "libvpx-vp9", options={"crf": "34", "b": "0", "deadline": "good", "cpu-used": "6", "threads": "1"}
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for image, milliseconds in zip(frames, _milliseconds(seconds), strict=True):
            pixels = np.asarray(image.convert("RGB").resize((width, height)))
            frame: Any = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = milliseconds, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue(), (width, height)


def _milliseconds(seconds: Sequence[float]) -> Iterator[int]:
    """Times from 0, each later than the one before."""
    last = -1
    for time in seconds:
        last = max(last + 1, round(1000 * (time - seconds[0])))
        yield last
