"""Videos as frames, by PyAV: one FFmpeg thread a video, exact presentation times, a fixed conversion.

Two passes. The first reads the packets without decoding them: their times, sorted, are the frames'
times, from which the wanted ones are chosen. The second decodes, from the keyframe before the first
wanted frame, and converts the wanted frames only. Where packets do not tell the frames' times (AVI,
raw streams) the first pass decodes as well, and frames are then told apart by counting.
"""

import errno
from array import array
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

from pipeline.contract import Sampling
from pipeline.errors import DecodeError
from pipeline.frames.sampling import sample_indices

# The pixels of PyAV's `to_ndarray(format="rgb24")`, whatever its defaults become.
_INTERPOLATION = Interpolation.BILINEAR | Interpolation.BITEXACT
_READ_SIZE_BYTES = 1 << 20


class _NotFrames(Exception):
    """The message says what is wrong with the file's bytes."""


@dataclass(frozen=True, slots=True)
class _FrameIndex:
    """All frames that a viewer would see, in order of presentation."""

    keys: np.ndarray  # (T,) int64, increasing: the frame's pts, or its ordinal when counted
    pts_seconds: np.ndarray  # (T,) float64, increasing, from 0
    keyframes: np.ndarray  # int64, increasing: pts of the keyframes
    counted: bool = False  # frames are told apart by counting: pts are missing or not to be trusted


def read_video(
    path: Path, *, sampling: Sampling, start_seconds: float | None, end_seconds: float | None
) -> Iterator[tuple[np.ndarray, float]]:
    """The sampled frames as ((H, W, 3) uint8 RGB, pts_seconds), turned as the display matrix says.

    Non-square pixels are not resampled, fields not deinterlaced. Damage that the decoder conceals
    without a word is not noticed.

    Raises DecodeError when there is no video stream, or fewer frames can be decoded than the container
    promises; OSError when the file can't be read.
    """
    num_found = 0
    try:
        index = _read_index(path)
        indices = sample_indices(
            index.pts_seconds, sampling=sampling, start_seconds=start_seconds, end_seconds=end_seconds
        )
        if not len(indices):
            return
        wanted, repeats = np.unique(indices, return_counts=True)
        keys, pts_seconds = index.keys[wanted].tolist(), index.pts_seconds[wanted].tolist()
        reformatter = VideoReformatter()
        with closing(_frames_from(path, first_key=keys[0], index=index)) as frames:
            for key, frame in frames:
                if key < keys[num_found]:
                    continue
                if key > keys[num_found] or frame.is_corrupt:
                    break
                pixels = _to_rgb(frame, reformatter=reformatter)
                for _ in range(repeats[num_found]):
                    yield pixels, pts_seconds[num_found]
                num_found += 1
                if num_found == len(keys):
                    return
        raise _NotFrames(f"the frame at {pts_seconds[num_found]:.3f} s is damaged or missing")
    except (av.error.FFmpegError, _NotFrames) as error:
        raise _failure(path, error, num_recovered=num_found) from error


def _failure(path: Path, error: Exception, *, num_recovered: int) -> Exception:
    """What to raise: FFmpeg's codes do not tell bad bytes (some demuxers say EIO) from a bad disk.

    So the file is read once more: raises the OSError that this meets.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno != errno.EIO):
        return error
    with path.open("rb", buffering=0) as file:
        while file.read(_READ_SIZE_BYTES):
            pass
    reason = getattr(error, "strerror", None) or str(error)
    return DecodeError(
        f"{path} can't be decoded: {reason} ({num_recovered} frames recovered). "
        "Replace or re-encode the file.",
        num_recovered=num_recovered,
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream."""
    with av.open(f"file:{path}") as container:  # without "file:", a colon in the name is a protocol's
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise _NotFrames("it has no video stream")
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        yield container, stream


def _read_index(path: Path) -> _FrameIndex:
    promised_bytes, size_bytes = _promised_bytes(path), path.stat().st_size
    if promised_bytes > size_bytes:
        raise _NotFrames(f"it ends after {size_bytes} of {promised_bytes} bytes")
    with _opened(path) as (container, stream):
        index = None if container.format.name == "avi" else _index_packets(container, stream)
    if index is None:
        with _opened(path) as (container, stream):
            index = _index_frames(container, stream)
    if not len(index.keys):
        raise _NotFrames("it has no frames")
    return index


def _index_packets(container: Any, stream: Any) -> _FrameIndex | None:
    """The index without decoding, or None when the packets do not tell the frames' times."""
    num_promised = len(stream.index_entries) if "mp4" in container.format.name else 0
    num_packets = 0
    shown, keyframes = array("q"), array("q")  # a long video has few bytes a frame
    for packet in container.demux(stream):
        num_packets += packet.size > 0 or packet.dts is not None
        if packet.size == 0:
            continue
        if packet.pts is None:
            return None
        if packet.is_keyframe:
            keyframes.append(packet.pts)
        if not packet.is_discard:  # cut away by an edit list
            shown.append(packet.pts)
    if num_packets < num_promised:
        raise _NotFrames(f"it ends after {num_packets} of {num_promised} frames")
    pts, keys = np.array(shown, dtype=np.int64), np.array(keyframes, dtype=np.int64)
    if len(keys):  # what is shown before it can't be decoded: the video was cut there
        pts = pts[pts >= keys[0]]
    pts.sort()
    if (np.diff(pts) <= 0).any() or (np.diff(keys) <= 0).any():
        return None
    return _FrameIndex(pts, _seconds(pts, stream=stream), keys)


def _index_frames(container: Any, stream: Any) -> _FrameIndex:
    """The index by decoding everything. Times are the frames' if they make sense, else by frame rate."""
    times = array("q")
    num_frames = 0
    for frame in _decoded(container, stream):
        num_frames += 1
        if frame.pts is not None:
            times.append(frame.pts)
    ordinals, pts = np.arange(num_frames), np.array(times, dtype=np.int64)
    if len(pts) == num_frames and (np.diff(pts) > 0).all():
        return _FrameIndex(ordinals, _seconds(pts, stream=stream), keyframes=ordinals[:0], counted=True)
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise _NotFrames("it has neither presentation times nor a frame rate")
    return _FrameIndex(ordinals, ordinals / float(rate), keyframes=ordinals[:0], counted=True)


def _seconds(pts: np.ndarray, *, stream: Any) -> np.ndarray:
    numerator, denominator = stream.time_base.as_integer_ratio()
    seconds: np.ndarray = (pts - pts[:1]) * numerator / denominator
    return seconds


def _frames_from(path: Path, *, first_key: int, index: _FrameIndex) -> Generator[tuple[int, Any], None, None]:
    """(key, frame) in order of presentation, from `first_key` or somewhat before."""
    keyframes = index.keyframes[index.keyframes <= first_key]
    if len(keyframes) > 1:
        with _opened(path) as (container, stream):
            container.seek(int(keyframes[-1]), stream=stream)
            frames = _decoded(container, stream)
            try:
                frame = next(frames, None)
            except av.error.FFmpegError:
                frame = None
            # Some keyframes are not clean (intra refresh), and some demuxers seek past them.
            if frame is not None and frame.pts <= first_key:
                yield frame.pts, frame
                yield from ((frame.pts, frame) for frame in frames)
                return
    with _opened(path) as (container, stream):
        for ordinal, frame in enumerate(_decoded(container, stream)):
            yield (ordinal if index.counted else frame.pts), frame


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Frames in order of presentation."""
    for packet in container.demux(stream):
        if packet.size:  # an empty packet means the end to a decoder, and containers have some in the middle
            yield from packet.decode()
    yield from stream.codec_context.decode(None)


def _to_rgb(frame: Any, *, reformatter: VideoReformatter) -> np.ndarray:
    """(H, W, 3) uint8, full range, as a viewer shows it."""
    rgb = reformatter.reformat(
        frame, format="rgb24", interpolation=_INTERPOLATION, dst_color_range=ColorRange.JPEG, threads=1
    )
    pixels: np.ndarray = rgb.to_ndarray()
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


def _promised_bytes(path: Path) -> int:
    """The file's size according to its header, where truncation would go unnoticed; 0 where it tells none.

    AVI: RIFF chunk. Matroska and WebM: EBML header, then the Segment (RFC 8794, RFC 9559).
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little")
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
    width = 9 - head[offset].bit_length()  # leading zeros say how many bytes follow
    payload_mask = (1 << 7 * width) - 1
    size = int.from_bytes(head[offset : offset + width], "big") & payload_mask
    return (0 if size == payload_mask else size), offset + width
