"""Videos of good frames in odd files: what is said about the frames and what the decoder gives differ.

As in tests/support/media.py, frames show their own index.
"""

import io
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.support.media import index_frame

_START_CODE = b"\0\0\0\1"


def encode(
    stream: Any,
    num_frames: int,
    *,
    ticks: Callable[[int], int] = lambda i: i,
    shows: Callable[[int], int] = lambda i: i,
    kinds: dict[int, str] | None = None,
) -> list[Any]:
    """The packets of the frames 0, 1, ..., whose times are `ticks` in the stream's time base.

    Frame i shows the index `shows(i)`; `kinds` sets the picture type ("I", "P") of some.
    """
    packets = []
    for index in range(num_frames):
        frame = av.VideoFrame.from_ndarray(index_frame(shows(index)), format="rgb24")
        frame.pts, frame.time_base = ticks(index), stream.codec_context.time_base
        if kinds and index in kinds:
            frame.pict_type = av.video.frame.PictureType[kinds[index]]
        packets += stream.encode(frame)
    return packets + stream.encode(None)


def add_stream(
    container: Any, codec: str, *, rate: int = 25, ticks_per_second: int | None = None, **options: str
) -> Any:
    """A 64 x 64 stream, encoded by one thread."""
    stream = container.add_stream(codec, rate=rate, options=options)
    stream.width = stream.height = 64
    stream.pix_fmt = "yuv420p"
    stream.codec_context.thread_count = 1
    stream.codec_context.time_base = Fraction(1, ticks_per_second or rate)
    return stream


def copy_of(packet: Any, content: bytes, *, pts: int | None = None) -> Any:
    """A packet with the times and flags of another, and other bytes."""
    copy = av.Packet(content)
    copy.time_base, copy.stream, copy.is_keyframe = packet.time_base, packet.stream, packet.is_keyframe
    copy.pts, copy.dts = packet.pts, packet.dts
    if pts is not None:
        copy.pts = copy.dts = pts
        copy.is_keyframe = False
    return copy


def write_message_samples(path: Path, *, after: Iterable[int] = (30,)) -> Path:
    """60 frames at 25 fps, and after some of them a sample that holds a SEI message and no picture."""
    with av.open(path, "w") as container:
        stream = add_stream(container, "libx264", ticks_per_second=50, g="12", bf="0")
        for index, packet in enumerate(encode(stream, 60, ticks=lambda i: 2 * i)):
            message = copy_of(
                packet, _START_CODE + b"\x06\x05\x11" + bytes(range(1, 17)) + b"A\x80", pts=packet.pts + 1
            )
            container.mux(packet)
            if index in after:
                container.mux(message)
    return path


def write_not_coded(
    path: Path, *, at: tuple[int, ...] = (10, 20), num_frames: int = 30, num_stuffed: int = 0
) -> Path:
    """Frames of MPEG-4 part 2 at 25 fps; those `at` are "not coded": the one before stays on screen.

    With `num_stuffed` zero bytes behind them, these packets are as large as those of pictures.
    """
    with av.open(path, "w") as container:
        stream = add_stream(container, "mpeg4", g="12", bf="0")
        packets = encode(stream, num_frames, shows=lambda i: i - 1 if i in at else i)
        for index, packet in enumerate(packets):
            bits = f"0101{index % 25:05b}10"  # P, no second passed, marker, time in 1/25 s, marker, not coded
            bits += "0".ljust(-len(bits) % 8 or 8, "1")
            content = b"\0\0\1\xb6" + int(bits, 2).to_bytes(len(bits) // 8, "big") + bytes(num_stuffed)
            container.mux(copy_of(packet, content) if index in at else packet)
    return path


def write_undeclared_reorder(path: Path) -> Path:
    """120 frames of H.264 at 25 fps, from number 72 on with B-frames, which no header announces."""
    params = "b-adapt=0:repeat-headers=1:annexb=1:open-gop=0:b-pyramid=2:bframes=3"
    with av.open(path, "w") as container:
        stream = add_stream(
            container, "libx264", g="24", keyint_min="24", sc_threshold="0", bf="2", **{"x264-params": params}
        )
        kinds = {index: "I" if index % 24 == 0 else "P" for index in range(72)}
        for packet in encode(stream, 120, kinds=kinds):
            units = [unit.rstrip(b"\0") for unit in bytes(packet).split(b"\0\0\1") if unit.strip(b"\0")]
            units = [_without_restrictions(unit) if unit[0] & 31 == 7 else unit for unit in units]
            container.mux(copy_of(packet, b"".join(_START_CODE + unit for unit in units)))
    return path


def _without_restrictions(unit: bytes) -> bytes:
    """A parameter set of x264 without bitstream_restriction_flag (ITU-T H.264, 7.3.2.1.1 and E.1.1)."""
    bits = "".join(f"{byte:08b}" for byte in unit[1:].replace(b"\0\0\3", b"\0\0"))
    at = 0

    def read(num_bits: int) -> int:
        nonlocal at
        at += num_bits
        return int(bits[at - num_bits : at] or "0", 2)

    def read_golomb() -> int:
        zeros = bits.index("1", at) - at
        return read(2 * zeros + 1) - 1

    profile = read(8)
    read(16), read_golomb()
    if profile >= 100:
        assert [read_golomb(), read_golomb(), read_golomb(), read(1), read(1)] == [1, 0, 0, 0, 0]
    read_golomb()
    if read_golomb() == 0:
        read_golomb()
    read_golomb(), read(1), read_golomb(), read_golomb()
    assert read(1) == 1  # frames, no fields
    read(1)
    if read(1):
        [read_golomb() for _ in range(4)]
    assert read(1) == 1  # video usability information
    if read(1) and read(8) == 255:
        read(32)
    if read(1):
        read(1)
    if read(1):
        read(4)
        if read(1):
            read(24)
    if read(1):
        read_golomb(), read_golomb()
    if read(1):
        read(32), read(32), read(1)
    assert [read(1), read(1)] == [0, 0]  # no HRD
    read(1)
    kept = bits[:at] + "01"
    kept += "0" * (-len(kept) % 8)
    content = int(kept, 2).to_bytes(len(kept) // 8, "big")
    for tail in range(4):
        content = content.replace(bytes((0, 0, tail)), bytes((0, 0, 3, tail)))
    return unit[:1] + content


def write_repeated_time(path: Path) -> Path:
    """40 frames at 10 fps, then 40 at 40 fps; frame 60 has the time of frame 59."""
    with av.open(path, "w") as container:
        stream = add_stream(container, "libx264", rate=40, ticks_per_second=1000, g="20", bf="0")
        packets = encode(stream, 80, ticks=lambda i: 100 * i if i < 40 else 4000 + 25 * (i - 40))
        packets[60].pts, packets[60].dts = packets[59].pts, packets[59].dts
        for packet in packets:
            container.mux(packet)
    return path


def without_first_packets(source: Path, target: Path, *, num_packets: int) -> Path:
    """A recording that begins in the middle."""
    with av.open(source) as reader, av.open(target, "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for index, packet in enumerate(reader.demux(video=0)):
            if packet.size and index >= num_packets:
                packet.stream = stream
                writer.mux(packet)
    return target


def write_motion_jpeg(path: Path, *, index: int, orientation: int) -> Path:
    """Three frames at 5 fps that show `index`, each a JPEG with EXIF that says how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = io.BytesIO()
    Image.fromarray(index_frame(index)).save(image, "JPEG", quality=95, subsampling=2, exif=exif)
    with av.open(path, "w") as container:
        stream = add_stream(container, "mjpeg", rate=5)
        stream.pix_fmt = "yuvj420p"
        for number in range(3):
            packet = av.Packet(image.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 5), stream, True
            container.mux(packet)
    return path


def write_transparent(path: Path, *, codec: str) -> Path:
    """Five frames at 5 fps, white everywhere; their left half is transparent."""
    pixels = np.full((64, 64, 4), 255, dtype=np.uint8)
    pixels[:, :32, 3] = 0
    with av.open(path, "w") as container:
        stream = add_stream(container, codec, rate=5, **{"auto-alt-ref": "0"})
        stream.pix_fmt = "yuva420p"
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format="yuva420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
