"""Videos as frames, by PyAV: one FFmpeg thread a video, exact presentation times, a fixed conversion.

The index (video_index.py) tells all frames' times, from which the wanted ones are chosen. Decoding
starts at the keyframe before the first wanted frame, skips what lies between sparse ones, and
converts the wanted frames only.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from pipeline.frames.images import on_black
from pipeline.frames.limits import Limits, NotFramesError, check_frame_size
from pipeline.frames.video_index import FrameIndex, blaming, decoded, opened, read_index

# The pixels of PyAV's `to_ndarray(format="rgb24")`, whatever its defaults become.
_INTERPOLATION = Interpolation.BILINEAR | Interpolation.BITEXACT

# Opening the file again and seeking costs about as much as decoding this many frames.
_WORTH_SEEKING_FRAMES = 32

_END: tuple[int, Any] = (2**63 - 1, None)  # after the last frame's (key, frame)


@dataclass(frozen=True, slots=True)
class Video:
    """A video file.

    Non-square pixels are not resampled, fields not deinterlaced. Damage that the decoder conceals
    without a word is not noticed.
    """

    path: Path
    limits: Limits
    index: FrameIndex

    @classmethod
    def open(cls, path: Path, *, limits: Limits) -> "Video":
        """Raises NotFramesError when there is no video stream or less than its container promises."""
        return cls(path, limits, read_index(path, limits=limits))

    @property
    def pts_seconds(self) -> np.ndarray:
        """(T,) float64, increasing, from 0."""
        return self.index.pts_seconds

    def frames(self, positions: np.ndarray) -> Generator[np.ndarray, None, None]:
        """The frames at `positions` (N,), increasing, as (H, W, 3) uint8 RGB, turned as a viewer shows them.

        Raises NotFramesError when one is damaged or missing, and after the last when more are known to be.
        """
        reformatter = VideoReformatter()
        runs, may_seek = _runs(positions, index=self.index), True
        while runs:
            run = runs.pop(0)
            seek_to = self._keyframe_before(run[0]) if may_seek else None
            num_found = 0
            try:
                with blaming(self.path), closing(self._find(run, seek_to=seek_to)) as frames:
                    for frame in frames:
                        yield _to_rgb(frame, reformatter=reformatter)
                        num_found += 1
            except NotFramesError as error:
                if seek_to is None:
                    reason = self.index.damage or error.reason
                    raise NotFramesError(self.path, reason, remedy=error.remedy) from error
                # Not every keyframe is a clean start (intra refresh), not every demuxer seeks well (MPEG-PS).
                runs, may_seek = [np.concatenate([run[num_found:], *runs])], False
        if self.index.damage:
            raise NotFramesError(self.path, self.index.damage)

    def _find(self, positions: np.ndarray, *, seek_to: int | None) -> Generator[Any, None, None]:
        """The frames at `positions` (N,). Raises NotFramesError when one is damaged or missing."""
        with closing(self._decode(seek_to=seek_to)) as frames:
            key, frame = next(frames, _END)
            for position in positions.tolist():
                while key < self.index.keys[position]:
                    key, frame = next(frames, _END)
                if key > self.index.keys[position] or frame.is_corrupt:
                    time = f"{self.pts_seconds[position]:.3f} s"
                    raise NotFramesError(self.path, f"the frame at {time} is damaged or missing")
                check_frame_size(self.path, height=frame.height, width=frame.width, limits=self.limits)
                yield frame

    def _keyframe_before(self, position: int) -> int | None:
        """The pts of the last keyframe up to the frame at `position`; None for the first."""
        number = int(np.searchsorted(self.index.keyframes, self.index.keys[position], side="right")) - 1
        return int(self.index.keyframes[number]) if number > 0 else None

    def _decode(self, *, seek_to: int | None = None) -> Generator[tuple[int, Any], None, None]:
        """(key, frame) in order of presentation, from the start or from the keyframe with that pts."""
        with opened(self.path, limits=self.limits) as (container, stream):
            if seek_to is not None:
                container.seek(seek_to, stream=stream)
            for ordinal, frame in enumerate(decoded(container, stream)):
                if self.index.counted:
                    yield ordinal, frame
                elif frame.pts is not None:
                    yield frame.pts, frame


def _runs(positions: np.ndarray, *, index: FrameIndex) -> list[np.ndarray]:
    """Positions (N,) cut where a keyframe lies so far ahead of the previous one that seeking is worth it."""
    if not len(index.keyframes):
        return [positions]
    number = np.searchsorted(index.keyframes, index.keys[positions[1:]], side="right") - 1
    keyframes = np.searchsorted(index.keys, index.keyframes[number])  # positions of the keyframes
    return np.split(positions, np.flatnonzero(keyframes - positions[:-1] > _WORTH_SEEKING_FRAMES) + 1)


def _to_rgb(frame: Any, *, reformatter: VideoReformatter) -> np.ndarray:
    """(H, W, 3) uint8, full range, on black where it is transparent, turned as a viewer shows it."""
    has_alpha = frame.format.has_palette or any(component.is_alpha for component in frame.format.components)
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
    matrix = frame.side_data.get("DISPLAYMATRIX")
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
