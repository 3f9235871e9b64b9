"""An open video file: its packets, and the frames that the decoder makes of them."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
from av.bitstream import BitStreamFilterContext
from av.codec.codec import UnknownCodecError
from av.stream import Disposition

from pipeline.frames.cut import read_claim
from pipeline.frames.limits import NotFramesError, check_frame_size
from pipeline.frames.times import in_order, mended
from pipeline.settings.extract import Limits

# Told, in the reading thread's context, of each packet that is read: so a slow video is not taken to hang.
on_packet: ContextVar[Callable[[], None]] = ContextVar("on_packet", default=lambda: None)

_INT_MAX = 2**31 - 1
_READ_SIZE_BYTES = 1 << 20
_PADDING_PIXELS = 1 << 20  # FFmpeg's limit counts padding: at most double, but for small frames

# FFmpeg's own decoders of these skip the alpha that WebM keeps beside the picture.
_READS_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}

# Units of a packet that are (parts of) pictures; others hold parameters and messages.
_PICTURE_UNITS = {"h264": "1-5", "hevc": "0-31", "av1": "3|6"}

# What a part of a packet begins with, and which parts are pictures.
_START = b"\0\0\1"
_PICTURE_STARTS = {"mpeg1video": _START + b"\0", "mpeg2video": _START + b"\0", "mpeg4": _START + b"\xb6"}

# Pictures that repeat the one before are so small, and the decoder makes no frame of them.
_NOT_CODED_BYTES = {"mpeg4": 10, "vp8": 2}


@dataclass
class OpenVideo:
    """A video stream and its decoder."""

    path: Path
    container: Any
    stream: Any
    decoder: Any
    error: av.error.FFmpegError | None = None  # that ended the frames early
    num_packets: int = field(default=0, init=False)  # read so far
    last_is_cut: bool = field(default=False, init=False)

    @property
    def is_avi(self) -> bool:
        """Whether the container is AVI, whose times are those of decoding."""
        return bool(self.container.format.name == "avi")

    @property
    def rate(self) -> Fraction | None:
        """Frames a second, as the header says or the first packets suggest."""
        rate: Fraction | None = self.stream.average_rate or self.stream.guessed_rate
        return rate

    def packets(self) -> Iterator[Any]:
        """The packets as they are stored."""
        packets, told = self.container.demux(self.stream), on_packet.get()
        while True:
            told()
            try:
                packet = next(packets)
            except (StopIteration, IndexError):  # PyAV 18 may trip, at the end, over streams that came late
                return
            except av.error.MemoryError as error:
                raise _claims_memory(self.path) from error
            self.num_packets += packet.size > 0 or packet.dts is not None
            self.last_is_cut = packet.is_corrupt or (self.last_is_cut and not packet.size)
            # An empty packet means the end to a decoder, and containers have some in the middle.
            if packet.size:
                yield packet

    def frames(self) -> Iterator[Any]:
        """The decoder's frames, in order of presentation, up to the first error, which is kept in `error`."""
        has_begun = False
        try:
            for packet in self.packets():
                has_begun |= packet.is_keyframe
                try:
                    frames = self.decoder.decode(packet)
                except av.error.InvalidDataError as error:
                    if not has_begun or not self.holds_picture(packet):
                        continue
                    self.error = error
                    break
                yield from frames
            yield from self.decoder.decode(None)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            self.error = self.error or error

    def timed_frames(self) -> Generator[tuple[float, Any], None, None]:
        """(seconds from the first, frame), as `frames`. Raises NotFramesError where nothing tells a time."""
        frames: Iterator[tuple[int | None, Any]] = ((frame.pts, frame) for frame in self.frames())
        if self.is_avi:
            frames = in_order(frames)
        try:
            yield from mended(frames, time_base=self.stream.time_base, rate=self.rate)
        except ValueError as error:
            raise NotFramesError(self.path, str(error)) from error

    def damage(self, *, num_frames: int, seconds: float) -> str | None:
        """Why there are no more frames after these, though there should be; None for a whole file.

        To be asked at the end, with the number of frames and the last one's time. Raises OSError when the
        file could not be read.
        """
        with suppress(av.error.FFmpegError):
            for _ in self.packets():  # after an error
                pass
        promised = len(self.stream.index_entries) if "mp4" in self.container.format.name else 0
        if self.num_packets < promised and self._has_lost_entries():
            return f"it ends after {self.num_packets} of {promised} frames"
        if promised and self.last_is_cut:
            return f"it ends within the last of {promised} frames"
        claim = read_claim(self.path)
        is_whole = self._is_complete(num_frames, seconds) and (self.stream.frames or not claim.is_cut)
        if claim.missing_bytes and not is_whole:
            return claim.as_reason()
        return blame(self.path, self.error).reason if self.error else None

    def _is_complete(self, num_frames: int, seconds: float) -> bool:
        """Whether the frames are all that the header tells of."""
        if self.stream.frames:
            return bool(num_frames >= self.stream.frames)
        duration, rate = self.container.duration, self.rate
        return bool(duration and rate and seconds + 1.5 / float(rate) >= duration / av.time_base)

    def _has_lost_entries(self) -> bool:
        """Whether the table of contents of an MP4 names bytes beyond its end; some samples hold no packet."""
        size_bytes = self.path.stat().st_size
        return any(entry.pos + entry.size > size_bytes for entry in self.stream.index_entries)

    def holds_picture(self, packet: Any) -> bool:
        """False for a packet that only has messages or parameters, or says that nothing has changed.

        May use the packet up.
        """
        codec = self.stream.codec_context.codec.canonical_name
        data, at = bytes(packet), 0
        if codec in _PICTURE_STARTS and _START in data:  # without any start code, it is a damaged picture
            at = data.find(_PICTURE_STARTS[codec])
        if at < 0 or packet.size - at <= _NOT_CODED_BYTES.get(codec, 0):
            return False
        if codec not in _PICTURE_UNITS:
            return True
        try:
            return bool(self._pictures_only.filter(packet))
        except av.error.InvalidDataError:
            return True

    @cached_property
    def _pictures_only(self) -> BitStreamFilterContext:
        units = _PICTURE_UNITS[self.stream.codec_context.codec.canonical_name]
        return BitStreamFilterContext(f"filter_units=pass_types={units}", self.stream)


@contextmanager
def opened_video(path: Path, *, limits: Limits) -> Iterator[OpenVideo]:
    """The best video stream of a file.

    Raises NotFramesError for a file without one, or with frames above the limits; OSError.
    """
    max_pixels = min(2 * (limits.max_frame_pixels or _INT_MAX) + _PADDING_PIXELS, _INT_MAX)
    options = {"max_pixels": str(max_pixels)}  # for what no header tells; frames are checked one by one
    try:
        # Without "file:", a colon in the name is a protocol's. Old tags are Latin-1 or worse.
        container = av.open(f"file:{path}", options=options, metadata_errors="replace")
    except av.error.MemoryError as error:
        raise _claims_memory(path) from error
    except av.error.FFmpegError as error:
        reason = blame(path, error).reason
        raise NotFramesError(path, read_claim(path).as_reason() or reason) from error
    try:
        with container:
            stream: Any = container.streams.best("video")
            if stream is None or stream.disposition & Disposition.attached_pic:
                raise NotFramesError(path, "it has no video stream")
            if stream.codec_context is None:
                raise NotFramesError(path, "its codec is unknown")
            check_frame_size(path, height=stream.height, width=stream.width, limits=limits)
            decoder = _decoder(path, stream)
            decoder.options = options
            decoder.thread_type = "NONE"
            decoder.thread_count = 1
            yield OpenVideo(path, container, stream, decoder)
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError as error:
        raise blame(path, error) from error


def _claims_memory(path: Path) -> NotFramesError:
    """Frames are within the limits: what there is no memory for is a table or packet of the container."""
    return NotFramesError(path, "it asks for more memory than there is")


def _decoder(path: Path, stream: Any) -> Any:
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    name = _READS_ALPHA.get(stream.codec_context.name) if tags.get("alpha_mode") == "1" else None
    if name is None:
        return stream.codec_context
    try:
        return av.CodecContext.create(name, "r")
    except UnknownCodecError as error:
        reason = f"it is transparent, which FFmpeg's decoder {name} reads, and PyAV was built without it"
        raise NotFramesError(path, reason, remedy="Install PyAV's own wheel.") from error


def blame(path: Path, error: av.error.FFmpegError) -> NotFramesError:
    """What FFmpeg's error means. Raises the OSError that reading the file meets, if it does.

    FFmpeg's codes do not tell: for bad bytes demuxers say EIO, EPERM and others.
    """
    with path.open("rb", buffering=0) as file:
        while file.read(_READ_SIZE_BYTES):
            pass
    return NotFramesError(path, error.strerror or str(error))
