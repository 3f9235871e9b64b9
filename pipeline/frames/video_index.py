"""Which frames a video has and when they are shown, to choose some of them and to know where to seek.

The packets tell this without decoding, but only as a hint: not every packet is a picture. Where packets have
no times, or the decoder contradicts them, all frames are decoded once and then told apart by counting.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.frames.limits import NotFramesError, check_num_frames
from pipeline.frames.open_video import OpenVideo, opened_video
from pipeline.settings.extract import Limits
from pipeline.system.files import FileStamp, file_stamp

# A longer pause is more likely a wrong time than a video's: then frames are counted.
_PAUSE_SECONDS = 60.0

_MAX_REORDERED = 32  # frames between a picture's place in the file and on screen


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """All frames that a viewer would see, in order of presentation."""

    keys: np.ndarray  # (T,) int64, increasing: the frame's pts, or its ordinal when counted
    frame_seconds: np.ndarray  # (T,) float64, increasing, from 0
    keyframes: np.ndarray  # int64, increasing: pts of the keyframes; empty when counted
    counted: bool = False  # by decoding
    damage: str | None = None  # why there are no frames after these, though there should be


T = TypeVar("T")


def _remembered(read: Callable[[Path, Limits], T]) -> Callable[[Path, Limits], T]:
    """`read` that keeps its last results while the files stay as they are: clips may be cut from one file."""

    @lru_cache(maxsize=8)
    def remembered(path: Path, limits: Limits, _: FileStamp) -> T:
        return read(path, limits)

    return lambda path, limits: remembered(path, limits, file_stamp(path))


def read_index(path: Path, limits: Limits) -> FrameIndex:
    """The index of a video, by its packets if they tell enough, else by counting its frames.

    Raises NotFramesError for a file that is no video or is above the limits, OSError when it can't be read.
    """
    return _hint(path, limits) or count_frames(path, limits)


@_remembered
def count_frames(path: Path, limits: Limits) -> FrameIndex:
    """The index of a video, by decoding all of it. Raises as `read_index` does."""
    found = array("d")  # seconds; a list would take several times the memory
    with opened_video(path, limits=limits) as video:
        for seconds, _ in video.timed_frames():
            found.append(seconds)
            check_num_frames(path, len(found), limits=limits)
        damage = video.damage(num_frames=len(found), seconds=found[-1] if found else 0.0)
    if not found:
        raise NotFramesError(path, damage or "it has no frames")
    ordinals = np.arange(len(found))
    return FrameIndex(ordinals, np.array(found), ordinals[:0], counted=True, damage=damage)


def begins_as_told(path: Path, index: FrameIndex, limits: Limits) -> bool:
    """Whether the first frames are those of the index; to be asked before decoding begins further on."""
    return _first_pts(path, limits) == tuple(index.keys[:3].tolist())


@_remembered
def _first_pts(path: Path, limits: Limits) -> tuple[int | None, ...]:
    with opened_video(path, limits=limits) as video:
        return tuple(frame.pts for frame in islice(video.frames(), 3))


@_remembered
def _hint(path: Path, limits: Limits) -> FrameIndex | None:
    with opened_video(path, limits=limits) as video:
        index = None if video.is_avi else _index_packets(video)
    if index is not None:
        check_num_frames(path, len(index.keys), limits=limits)
    return index


def _index_packets(video: OpenVideo) -> FrameIndex | None:
    """The index without decoding, or None when the packets do not tell the frames' times."""
    shown, keyframes = array("q"), array("q")
    last_dts = None
    for packet in video.packets():
        if packet.pts is None:
            return None
        if packet.dts is not None:
            if last_dts is not None and packet.dts < last_dts:  # joined files, or a clock that wrapped
                return None
            last_dts = packet.dts
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        pts, is_shown = packet.pts, not packet.is_discard  # cut away by an edit list
        if is_shown and video.holds_picture(packet):
            shown.append(pts)
    frames, keys = np.array(shown, dtype=np.int64), np.array(keyframes, dtype=np.int64)
    if len(keys):  # what is shown before it can't be decoded: the video was cut there
        frames = frames[frames >= keys[0]]
    order = np.argsort(frames, kind="stable")
    if (np.abs(order - np.arange(len(order))) > _MAX_REORDERED).any():  # further than codecs do: a wrong time
        return None
    frames = frames[order]
    numerator, denominator = video.stream.time_base.as_integer_ratio()
    seconds = (frames - frames[:1]) * numerator / denominator
    steps = np.diff(seconds)
    if not len(frames) or (steps <= 0).any() or (steps > _PAUSE_SECONDS).any() or (np.diff(keys) <= 0).any():
        return None
    if video.container.format.name == "mpeg":  # seeking gives its times to other pictures
        keys = keys[:0]
    return FrameIndex(frames, seconds, keys, damage=video.damage(num_frames=len(frames), seconds=seconds[-1]))
