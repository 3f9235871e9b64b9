"""Videos as frames, by PyAV: one FFmpeg thread a video, exact presentation times, a fixed conversion.

The decoder's output is the truth, and only the wanted frames are converted to RGB. `every: n` of a whole
video counts the frames in one pass. All other frames are chosen by the times in the index (video_index.py):
decoding begins at the keyframe before the first of them and, but for `every: n`, skips what lies between
sparse ones. When the decoder contradicts the index, all frames are counted instead.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from pipeline.frames.images import on_black
from pipeline.frames.limits import NotFramesError, check_frame_size, check_num_frames
from pipeline.frames.open_video import OpenVideo, blame, opened_video
from pipeline.frames.sampling import Wanted
from pipeline.frames.video_index import FrameIndex, begins_as_told, count_frames, read_index
from pipeline.settings.extract import Limits

# The pixels of PyAV's `to_ndarray(format="rgb24")`, whatever its defaults become.
_INTERPOLATION = Interpolation.BILINEAR | Interpolation.BITEXACT

# Opening the file again and seeking costs about as much as decoding this many frames.
_WORTH_SEEKING_FRAMES = 32

_HELD_BYTES = 256 << 20  # 16 frames of 1080p are 100 MB

_NO_FRAME = av.VideoFrame()

Shown = tuple[np.ndarray, float, int]  # pixels (H, W, 3) uint8 RGB, seconds, how often it is used


class _UnlikeIndexError(Exception):
    """The decoder's frames are not those of the index."""


@dataclass(frozen=True, slots=True)
class Video:
    """A video file.

    Non-square pixels are not resampled, and fields are not deinterlaced. Damage that the decoder conceals in
    silence is not noticed.
    """

    path: Path
    limits: Limits

    @property
    def frame_seconds(self) -> np.ndarray:
        """(T,) float64, increasing, from 0: the times as the index tells them."""
        return read_index(self.path, self.limits).frame_seconds

    def shown(self, wanted: Wanted) -> Generator[Shown, None, None]:
        """The wanted frames, turned as a viewer shows them, each with its time and how often it is used.

        Raises NotFramesError when a frame is damaged or missing; after the last frame, when the file is known
        to end too early.
        """
        if wanted.step and wanted.is_whole:
            yield from self._counted(wanted.step)
            return
        index = read_index(self.path, self.limits)
        last_seconds = -1.0
        held: list[Shown] = []  # frames that another index could choose otherwise, until the decoder agrees
        try:
            for found in self._chosen(index, wanted):
                held.append(found)
                if not wanted.by_total:  # the last one may be on screen for longer
                    yield from held[:-1]
                    last_seconds = held[-2][1] if len(held) > 1 else last_seconds
                    held = held[-1:]
                elif not index.counted and len(held) * found[0].nbytes > _HELD_BYTES:
                    raise _UnlikeIndexError
            yield from held
        except NotFramesError:
            yield from held
            raise
        except _UnlikeIndexError:
            index = count_frames(self.path, self.limits)
            yield from self._chosen(index, wanted, after=last_seconds)
        _check_end(self.path, index, wanted)

    def check_end(self, wanted: Wanted) -> None:
        """Raise NotFramesError where the source is known to end before the wanted frames do."""
        _check_end(self.path, read_index(self.path, self.limits), wanted)

    def _counted(self, step: int) -> Iterator[Shown]:
        """The first frame and each `step`-th after it, in one pass."""
        reformatter = VideoReformatter()
        num_frames, seconds = 0, 0.0
        with opened_video(self.path, limits=self.limits) as video:
            if self._may_be_too_long(video):
                read_index(self.path, self.limits)
            with closing(video.timed_frames()) as frames:
                for seconds, frame in frames:
                    num_frames += 1
                    check_num_frames(self.path, num_frames, limits=self.limits)
                    if (num_frames - 1) % step == 0:
                        yield self._pixels(frame, seconds, reformatter=reformatter), seconds, 1
            damage = video.damage(num_frames=num_frames, seconds=seconds)
        if damage or not num_frames:
            raise NotFramesError(self.path, damage or "it has no frames")

    def _may_be_too_long(self, video: OpenVideo) -> bool:
        """Whether the header says so, which the index tells for sure, before hours of work."""
        limit, duration, rate = self.limits.max_source_frames, video.container.duration, video.rate
        if limit is None:
            return False
        expected = float(rate * duration / av.time_base) if duration and rate else 0.0
        return bool(max(video.stream.frames, expected) > limit)

    def _chosen(self, index: FrameIndex, wanted: Wanted, *, after: float = -1.0) -> Iterator[Shown]:
        """The wanted frames that are shown later than `after`. Raises _UnlikeIndexError, NotFramesError."""
        positions, repeats = wanted.choose(index.frame_seconds, path=self.path, limits=self.limits)
        is_later = index.frame_seconds[positions] > after
        positions, num_times = positions[is_later], iter(repeats[is_later].tolist())
        reformatter = VideoReformatter()
        runs, may_seek = [positions] if wanted.step else _runs(positions, index=index), True
        while runs:
            run = runs.pop(0)
            seek_to = _keyframe_before(run[0], index=index) if may_seek else None
            num_found = 0
            try:
                with closing(self._decode(index, run, seek_to=seek_to)) as frames:
                    for position, frame in zip(run.tolist(), frames, strict=True):
                        seconds = float(index.frame_seconds[position])
                        yield self._pixels(frame, seconds, reformatter=reformatter), seconds, next(num_times)
                        num_found += 1
            except (NotFramesError, _UnlikeIndexError):
                if seek_to is None:
                    raise
                # Not every keyframe is a clean start (intra refresh), not every demuxer seeks well (MPEG-PS).
                runs, may_seek = [np.concatenate([run[num_found:], *runs])], False

    def _decode(
        self, index: FrameIndex, positions: np.ndarray, *, seek_to: int | None
    ) -> Generator[Any, None, None]:
        """The frames at `positions` (N,), decoded from the start or from the keyframe with the pts `seek_to`.

        Raises _UnlikeIndexError when the decoder's frames are others, NotFramesError where they end early.
        """
        at, todo = 0, iter(positions.tolist())
        position = next(todo)
        unlike: Exception = _UnlikeIndexError()
        if index.counted:
            unlike = NotFramesError(self.path, "it does not decode to the same frames twice")
        with opened_video(self.path, limits=self.limits) as video:
            if seek_to is not None:
                if not begins_as_told(self.path, index, self.limits):
                    raise unlike
                video.container.seek(seek_to, stream=video.stream)
                at = int(np.searchsorted(index.keys, seek_to))
            has_begun = seek_to is None
            for ordinal, frame in enumerate(video.frames()):
                key = ordinal if index.counted else frame.pts
                if not has_begun and key is not None and key < index.keys[at]:
                    continue  # it leads the keyframe that was sought
                has_begun = True
                if at == len(index.keys) or key != index.keys[at]:
                    raise unlike
                if at == position:
                    yield frame
                    position = next(todo, None)
                    if position is None:
                        return
                at += 1
            if video.error:
                raise NotFramesError(self.path, index.damage or blame(self.path, video.error).reason)
        raise unlike

    def _pixels(self, frame: Any, seconds: float, *, reformatter: VideoReformatter) -> np.ndarray:
        if frame.is_corrupt:
            raise NotFramesError(self.path, f"the frame at {seconds:.3f} s is damaged")
        check_frame_size(self.path, height=frame.height, width=frame.width, limits=self.limits)
        return _to_rgb(frame, reformatter=reformatter)


def _check_end(path: Path, index: FrameIndex, wanted: Wanted) -> None:
    if index.damage and wanted.reaches_beyond(index.frame_seconds[-1]):
        raise NotFramesError(path, index.damage)


def _keyframe_before(position: int, *, index: FrameIndex) -> int | None:
    """The pts of the last keyframe up to the frame at `position`; None for the first."""
    number = int(np.searchsorted(index.keyframes, index.keys[position], side="right")) - 1
    return int(index.keyframes[number]) if number > 0 else None


def _runs(positions: np.ndarray, *, index: FrameIndex) -> list[np.ndarray]:
    """Positions (N,) cut where a keyframe lies so far ahead of the previous one that seeking is worth it."""
    if not len(index.keyframes):
        return [positions]
    number = np.searchsorted(index.keyframes, index.keys[positions[1:]], side="right") - 1
    keyframes = np.searchsorted(index.keys, index.keyframes[number])  # positions of the keyframes
    return np.split(positions, np.flatnonzero(keyframes - positions[:-1] > _WORTH_SEEKING_FRAMES) + 1)


def _display_matrix(frame: Any) -> Any:
    side_data = frame.side_data
    matrix = side_data.get("DISPLAYMATRIX")
    # In PyAV 18, a frame and its side data hold each other: only the garbage collector would free them, after
    # hundreds of frames. From here on, the side data are those of another frame.
    side_data.__init__(_NO_FRAME)
    return matrix


@lru_cache
def _has_alpha(pixel_format: str) -> bool:
    described = av.VideoFormat(pixel_format)
    return described.has_palette or any(component.is_alpha for component in described.components)


def _to_rgb(frame: Any, *, reformatter: VideoReformatter) -> np.ndarray:
    """(H, W, 3) uint8, full range, on black where it is transparent, turned as a viewer shows it."""
    has_alpha = _has_alpha(frame.format.name)
    rgb = reformatter.reformat(
        frame,
        format="rgba" if has_alpha else "rgb24",
        interpolation=_INTERPOLATION,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    pixels: np.ndarray = rgb.to_ndarray()
    if has_alpha:
        pixels = on_black(pixels)
    try:
        matrix = _display_matrix(frame)
    except ValueError:  # PyAV 18 has no name for EXIF, as in Motion JPEG, and then tells the angle alone
        return np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
    if matrix is None:
        return pixels
    # x' = a x + c y, y' = b x + d y: https://ffmpeg.org/doxygen/trunk/group__lavu__video__display.html
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if a == d == 0:
        pixels = pixels.swapaxes(0, 1)  # (W, H, 3)
        a, d = c, b
    if a < 0:
        pixels = np.flip(pixels, axis=1)
    if d < 0:
        pixels = np.flip(pixels, axis=0)
    return np.ascontiguousarray(pixels)
