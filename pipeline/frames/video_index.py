"""When a video's frames are shown, and where decoding may start: read from packets, without decoding.

Where packets do not tell the frames' times (AVI, raw streams) all frames are decoded once, and are then
told apart by counting.
"""

from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition

from pipeline.frames.limits import Limits, NotFramesError, check_frame_size, check_num_frames

# Told, in the reading thread's context, of each packet that is read: so a slow video is not taken to hang.
on_packet: ContextVar[Callable[[], None]] = ContextVar("on_packet", default=lambda: None)

_INT_MAX = 2**31 - 1
_READ_SIZE_BYTES = 1 << 20
_PADDING_PIXELS = 1 << 20  # FFmpeg's limit counts padding: at most double, but for small frames


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """All frames that a viewer would see, in order of presentation."""

    keys: np.ndarray  # (T,) int64, increasing: the frame's pts, or its ordinal when counted
    pts_seconds: np.ndarray  # (T,) float64, increasing, from 0
    keyframes: np.ndarray  # int64, increasing: pts of the keyframes; empty when counted
    counted: bool = False  # frames are told apart by counting: pts are missing or not to be trusted
    damage: str | None = None  # why there are no frames after these, though there should be


def read_index(path: Path, *, limits: Limits) -> FrameIndex:
    """The video's index, remembered while the file stays as it is: many clips may be cut from one video.

    Raises NotFramesError, or OSError when the file can't be read.
    """
    stat = path.stat()
    return _read_index(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns), limits)


@lru_cache(maxsize=8)
def _read_index(path: Path, identity: tuple[int, ...], limits: Limits) -> FrameIndex:
    promised_bytes, size_bytes = _promised_bytes(path), identity[2]
    damage = None
    if promised_bytes > size_bytes:
        damage = f"it ends after {size_bytes} of {promised_bytes} bytes"
    try:
        with opened(path, limits=limits) as (container, stream):
            index = None if container.format.name == "avi" else _index_packets(container, stream)
            is_cut = "mp4" not in container.format.name and "matroska" not in container.format.name
        if index is not None and is_cut and not begins_as_told(path, index, limits=limits):
            index = None
        if index is None:
            with opened(path, limits=limits) as (container, stream):
                index = _index_frames(path, container, stream, limits=limits)
    except NotFramesError as error:
        raise NotFramesError(path, damage or error.reason, remedy=error.remedy) from error
    except av.error.MemoryError as error:  # frames are within the limits: it is for a table or a packet
        raise NotFramesError(path, "it asks for more memory than there is") from error
    if not len(index.keys):
        raise NotFramesError(path, damage or index.damage or "it has no frames")
    check_num_frames(path, len(index.keys), limits=limits)
    return replace(index, damage=damage or index.damage)


@contextmanager
def opened(path: Path, *, limits: Limits) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream."""
    max_pixels = min(2 * (limits.max_frame_pixels or _INT_MAX) + _PADDING_PIXELS, _INT_MAX)
    options = {"max_pixels": str(max_pixels)}  # for what no header tells; frames are checked one by one
    # Without "file:", a colon in the name is a protocol's. Old tags are Latin-1 or worse.
    with blaming(path), av.open(f"file:{path}", options=options, metadata_errors="replace") as container:
        stream: Any = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise NotFramesError(path, "it has no video stream")
        if stream.codec_context is None:
            raise NotFramesError(path, "its codec is unknown")
        check_frame_size(path, height=stream.height, width=stream.width, limits=limits)
        stream.codec_context.options = options
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """FFmpeg's errors as the OSError that reading the file meets, else as NotFramesError.

    FFmpeg's codes do not tell: for bad bytes demuxers say EIO, EPERM and others.
    """
    try:
        yield
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_SIZE_BYTES):
                pass
        raise NotFramesError(path, error.strerror or str(error)) from error


def decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames in order of presentation."""
    for packet in _packets(container, stream):
        if packet.size:  # an empty packet means the end to a decoder, and containers have some in the middle
            yield from packet.decode()
    yield from stream.codec_context.decode(None)


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    packets, told = container.demux(stream), on_packet.get()
    while True:
        told()
        try:
            packet = next(packets)
        except (StopIteration, IndexError):  # PyAV 18 may trip, at the end, over streams that appeared late
            return
        yield packet


def _index_packets(container: Any, stream: Any) -> FrameIndex | None:
    """The index without decoding, or None when the packets do not tell the frames' times."""
    num_promised = len(stream.index_entries) if "mp4" in container.format.name else 0
    num_packets = 0
    shown, keyframes = array("q"), array("q")  # a long video has few bytes a frame
    for packet in _packets(container, stream):
        num_packets += packet.size > 0 or packet.dts is not None
        if packet.size == 0:
            continue
        if packet.pts is None:
            return None
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        if not packet.is_discard:  # cut away by an edit list
            shown.append(packet.pts)
    damage = None
    if num_packets < num_promised:
        damage = f"it ends after {num_packets} of {num_promised} frames"
    pts, keys = np.array(shown, dtype=np.int64), np.array(keyframes, dtype=np.int64)
    if len(keys):  # what is shown before it can't be decoded: the video was cut there
        pts = pts[pts >= keys[0]]
    pts.sort()
    if (np.diff(pts) <= 0).any() or (np.diff(keys) <= 0).any():
        return None
    return FrameIndex(pts, _seconds(pts, stream=stream), keys, damage=damage)


def begins_as_told(path: Path, index: FrameIndex, *, limits: Limits) -> bool:
    """Whether packets are frames. Cut out of a stream, they may be fields (interlaced H.264, AVCHD)."""
    with opened(path, limits=limits) as (container, stream):
        frames = islice(decoded(container, stream), 3)
        return all(frame.pts == key for frame, key in zip(frames, index.keys, strict=False))


def _index_frames(path: Path, container: Any, stream: Any, *, limits: Limits) -> FrameIndex:
    """The index by decoding everything. Times are the frames' if they make sense, else by frame rate."""
    times = array("q")
    num_frames, damage = 0, None
    try:
        for frame in decoded(container, stream):
            num_frames += 1
            check_num_frames(path, num_frames, limits=limits)
            if frame.pts is not None:
                times.append(frame.pts)
    except av.error.InvalidDataError as error:
        damage = str(error.strerror)
    ordinals, pts = np.arange(num_frames), np.array(times, dtype=np.int64)
    if len(pts) == num_frames and (np.diff(pts) > 0).all():
        return FrameIndex(ordinals, _seconds(pts, stream=stream), ordinals[:0], counted=True, damage=damage)
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise NotFramesError(path, "it has neither presentation times nor a frame rate")
    return FrameIndex(ordinals, ordinals / float(rate), ordinals[:0], counted=True, damage=damage)


def _seconds(pts: np.ndarray, *, stream: Any) -> np.ndarray:
    numerator, denominator = stream.time_base.as_integer_ratio()
    seconds: np.ndarray = (pts - pts[:1]) * numerator / denominator
    return seconds


def _promised_bytes(path: Path) -> int:
    """The file's size according to its header, where truncation would go unnoticed; 0 where it tells none.

    AVI: RIFF chunk. Matroska and WebM: EBML header, then the Segment (RFC 8794, RFC 9559).
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF":
        size = int.from_bytes(head[4:8], "little")
        return 0 if size == 0xFFFFFFFF else 8 + size  # unknown when it was written into a pipe
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return 0
    length, start = _ebml_size(head, 4)
    segment = start + length
    if head[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    length, start = _ebml_size(head, segment + 4)
    return start + length


def _ebml_size(head: bytes, offset: int) -> tuple[int, int]:
    """(size, where the content starts); a size of all ones, unknown as in live recordings, is 0."""
    width = 9 - int.from_bytes(head[offset : offset + 1]).bit_length()  # leading zeros: how many bytes follow
    payload_mask = (1 << 7 * width) - 1
    size = int.from_bytes(head[offset : offset + width], "big") & payload_mask
    return (0 if size == payload_mask else size), offset + width
