"""Frames of a clip: RGB pixels and presentation times, from a video, images or a folder of images."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np

from pipeline.contract import Preprocessing, Sampling
from pipeline.errors import DecodeError
from pipeline.frames.animation import AnimatedPng, open_animation
from pipeline.frames.foreign import foreign_kind
from pipeline.frames.images import Images, read_bytes
from pipeline.frames.limits import NotFramesError, check_prepared
from pipeline.frames.open_video import on_packet
from pipeline.frames.sampling import Wanted
from pipeline.frames.video import Shown, Video
from pipeline.manifest import Clip, is_image, source_files
from pipeline.settings.extract import Limits

__all__ = [
    "DEFAULT_LIMITS",
    "ClipInfo",
    "FrameBatch",
    "Range",
    "clip_range",
    "foreign_kind",
    "on_packet",
    "probe",
    "read_frames",
]

DEFAULT_LIMITS = Limits()
_BATCH_BYTES = 64 << 20

Stack = Callable[[Sequence[np.ndarray]], np.ndarray]


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """Consecutive sampled frames of one size."""

    pixels: np.ndarray  # (T, H, W, 3) uint8 RGB, C-contiguous
    frame_seconds: np.ndarray  # (T,) float64, from the first frame of the whole source


@dataclass(frozen=True, slots=True)
class ClipInfo:
    """How many frames a clip gives, for how long, and of which size."""

    num_frames: int  # as sampled
    seconds: float  # from its first sampled frame to its last
    height: int  # of its first frame, in pixels
    width: int


class Range(TypedDict):
    """The arguments of `read_frames` and `probe` that say which files and which stretch of time are read."""

    paths: Sequence[Path]
    start_seconds: float | None
    end_seconds: float | None
    image_fps: float


def clip_range(clip: Clip, *, root: Path) -> Range:
    """The arguments of `read_frames` and `probe` for a clip whose sources are relative to `root`."""
    return {
        "paths": [root / source for source in clip.sources],
        "start_seconds": clip.start_seconds,
        "end_seconds": clip.end_seconds,
        "image_fps": clip.image_fps,
    }


class Stills(Protocol):
    """Images or an animation: their times are known before they are decoded."""

    @property
    def frame_seconds(self) -> np.ndarray:
        """(T,) float64, increasing, from 0."""
        ...

    def frames(self, positions: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The frames at `positions` (N,), strictly increasing, as (H, W, 3) uint8 RGB."""
        ...


def read_frames(
    paths: Sequence[Path],
    *,
    sampling: Sampling,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    image_fps: float = 1.0,
    batch_size: int = 16,
    limits: Limits = DEFAULT_LIMITS,
    preprocessing: Preprocessing | None = None,
    stack: Stack = np.stack,
) -> Iterator[FrameBatch]:
    """The sampled frames of one video, one folder of images, or one or several images.

    Only frames with start_seconds <= time < end_seconds are used. Images are shown for 1 / image_fps
    seconds each. A batch has at most `batch_size` frames; it has fewer where frames are large, or where the
    next frame has another size. Frames are not resized here: with `preprocessing`, a frame is refused if it
    would be above the limits when resized, or is smaller than the crop. `stack` makes a batch's pixels of its
    frames, (H, W, 3) each.

    Raises DecodeError when the bytes are not frames, are above the limits, or have no frame in the range. It
    names the file, and has the number of frames that were returned before. Raises OSError when a file can't
    be read.
    """
    wanted = Wanted(sampling, start_seconds, end_seconds)
    num_frames = 0
    try:
        source = _open([file for path in paths for file in source_files(path)], image_fps, limits)
        with closing(_shown(source, wanted, paths[0], limits, preprocessing)) as shown:
            for batch in _batches(shown, batch_size=batch_size, stack=stack):
                yield batch
                num_frames += len(batch.pixels)
    except NotFramesError as error:
        raise error.as_decode_error(num_recovered=num_frames) from error


def probe(
    paths: Sequence[Path],
    *,
    sampling: Sampling,
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    image_fps: float = 1.0,
    limits: Limits = DEFAULT_LIMITS,
    preprocessing: Preprocessing | None = None,
) -> ClipInfo:
    """What `read_frames` will give, by decoding only the first frame (or all frames of an AVI).

    Of videos in which some packets hold no picture, `read_frames` may give fewer frames.

    Raises DecodeError and OSError as `read_frames` does, as far as the first frame and the index show it.
    """
    wanted = Wanted(sampling, start_seconds, end_seconds)
    try:
        source = _open([file for path in paths for file in source_files(path)], image_fps, limits)
        frame_seconds = source.frame_seconds
        positions, repeats = wanted.choose(frame_seconds, path=paths[0], limits=limits)
        begin = Wanted(Sampling(), start_seconds=float(frame_seconds[positions[0]]))
        with closing(_shown(source, begin, paths[0], limits, preprocessing)) as shown:
            height, width, _ = next(shown)[0].shape
        if isinstance(source, Video | AnimatedPng):
            source.check_end(wanted)
    except NotFramesError:  # reading it all tells whether that is so, and what can be recovered
        batches = [
            (batch.pixels.shape, batch.frame_seconds)
            for batch in read_frames(
                paths,
                sampling=sampling,
                start_seconds=start_seconds,
                end_seconds=end_seconds,
                image_fps=image_fps,
                limits=limits,
                preprocessing=preprocessing,
            )
        ]
        frame_seconds = np.concatenate([seconds for _, seconds in batches])
        _, height, width, _ = batches[0][0]
        length = float(frame_seconds[-1] - frame_seconds[0])
        return ClipInfo(num_frames=len(frame_seconds), seconds=length, height=height, width=width)
    first, last = frame_seconds[positions[[0, -1]]].tolist()
    return ClipInfo(num_frames=int(repeats.sum()), seconds=last - first, height=height, width=width)


def _open(files: Sequence[Path], image_fps: float, limits: Limits) -> Stills | Video:
    if all(is_image(file) for file in files):
        if len(files) > 1:
            return Images.open(files, None, image_fps=image_fps, limits=limits)
        data = read_bytes(files[0], limits=limits)
        animation = open_animation(files[0], data, limits=limits)
        return animation or Images.open(files, data, image_fps=image_fps, limits=limits)
    if len(files) == 1:
        return Video(files[0], limits)
    names = ", ".join(str(file) for file in files)
    raise DecodeError(f"{names}: a clip is one video or several images. Make each video its own clip.")


def _shown(
    source: Stills | Video,
    wanted: Wanted,
    path: Path,
    limits: Limits,
    preprocessing: Preprocessing | None,
) -> Generator[Shown, None, None]:
    """The wanted frames, each with its time and how often it is used."""
    files: Iterator[Path] = repeat(path)
    if isinstance(source, Video):
        frames = source.shown(wanted)
    else:
        positions, repeats = wanted.choose(source.frame_seconds, path=path, limits=limits)
        frames = _with_times(source, positions, repeats)
        if isinstance(source, Images):
            files = iter([source.paths[position] for position in positions])
    checked = None
    with closing(frames):
        for shown, file in zip(frames, files, strict=False):
            if preprocessing and shown[0].shape != checked:
                height, width, _ = checked = shown[0].shape
                check_prepared(file, height=height, width=width, preprocessing=preprocessing, limits=limits)
            yield shown
    if isinstance(source, AnimatedPng):
        source.check_end(wanted)


def _with_times(source: Stills, positions: np.ndarray, repeats: np.ndarray) -> Generator[Shown, None, None]:
    with closing(source.frames(positions)) as frames:
        yield from zip(frames, source.frame_seconds[positions].tolist(), repeats.tolist(), strict=True)


def _batches(frames: Iterator[Shown], *, batch_size: int, stack: Stack) -> Iterator[FrameBatch]:
    """Frames in batches. Frames that were read before an error are yielded before it is raised."""
    pixels: list[np.ndarray] = []
    frame_seconds: list[float] = []
    try:
        for frame, seconds, num_times in frames:
            for _ in range(num_times):
                is_full = len(pixels) == batch_size or len(pixels) * frame.nbytes >= _BATCH_BYTES
                if pixels and (is_full or frame.shape != pixels[0].shape):
                    yield FrameBatch(stack(pixels), np.array(frame_seconds))
                    pixels, frame_seconds = [], []
                pixels.append(frame)
                frame_seconds.append(seconds)
    except NotFramesError:
        if pixels:
            yield FrameBatch(stack(pixels), np.array(frame_seconds))
        raise
    if pixels:
        yield FrameBatch(stack(pixels), np.array(frame_seconds))
