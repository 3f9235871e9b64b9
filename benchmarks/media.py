"""Differential check: some 160 small videos, each read by framecache and by an independent loop.

Containers x codecs x GOP shapes x pixel formats, then odd files, then damaged ones. Prints each file in which
the number, times or pixels of the frames differ. Of a damaged file framecache must report the damage, and may
recover only frames that the loop finds too. Ends with status 1 for a difference that EXPECTED does not list.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from benchmarks.report import Report, Row, arguments
from pipeline.contract import Sampling
from pipeline.errors import DecodeError
from pipeline.frames import read_frames
from stages.bars import ProgressBar
from tests.support import odd_videos
from tests.support.media import write_video

NUM_FRAMES = 36

GOPS = {
    "intra": {"g": "1", "bf": "0"},
    "short": {"g": "6", "bf": "0"},
    "b-frames": {"g": "12", "bf": "2"},
    "one": {"g": "250", "bf": "0"},
}
OPEN_GOPS = {
    "open": {"g": "12", "bf": "3", "x264-params": "open-gop=1:b-pyramid=normal"},
    "refresh": {"g": "12", "x264-params": "intra-refresh=1"},
}


@dataclass(frozen=True)
class Encoder:
    """The files that one encoder makes: every GOP shape in every container, other pixels in the first one."""

    suffixes: tuple[str, ...]
    pixels: str = "yuv420p"
    other_pixels: tuple[str, ...] = ()
    gops: Mapping[str, dict[str, str]] = field(default_factory=lambda: {"default": {}})
    options: Mapping[str, str] = field(default_factory=dict)  # quick and quiet
    size: tuple[int, int] = (64, 64)


_VPX = {"cpu-used": "8", "deadline": "realtime"}
ENCODERS = {
    "libx264": Encoder(
        ("mp4", "mkv", "mov", "avi", "ts", "flv", "h264"),
        other_pixels=("yuv422p", "yuv444p", "yuv420p10le", "yuvj420p", "gray"),
        gops=GOPS | OPEN_GOPS,
    ),
    "libx265": Encoder(
        ("mp4", "mkv", "mov", "ts", "hevc"),
        other_pixels=("yuv444p", "yuv420p10le"),
        options={"x265-params": "log-level=none:keyint=12:bframes=3:pools=none", "preset": "ultrafast"},
    ),
    "mpeg4": Encoder(("mp4", "mkv", "avi", "mov", "3gp"), gops=GOPS),
    "mpeg2video": Encoder(("mpg", "ts", "mkv", "vob"), gops=GOPS),
    "mpeg1video": Encoder(("mpg",), gops=GOPS),
    "libvpx": Encoder(("webm", "mkv"), options=_VPX),
    "libvpx-vp9": Encoder(
        ("webm", "mkv", "mp4", "ivf"), other_pixels=("yuv444p", "yuv440p"), gops=GOPS, options=_VPX
    ),
    "libsvtav1": Encoder(("mp4", "webm", "mkv"), options={"svtav1-params": "lp=1", "preset": "8"}),
    "mjpeg": Encoder(("avi", "mov", "mkv"), "yuvj420p", other_pixels=("yuvj422p", "yuvj444p")),
    "wmv2": Encoder(("wmv", "asf")),
    "flv1": Encoder(("flv",)),
    "h263": Encoder(("3gp",), size=(144, 176)),
    "ffv1": Encoder(("mkv", "avi"), other_pixels=("gray", "bgr0", "yuva444p", "gray16le")),
    "huffyuv": Encoder(("avi",), "yuv422p"),
    "prores_ks": Encoder(("mov",), "yuv422p10le"),
    "gif": Encoder(("gif",), "rgb8"),
}

# Known differences, and why they are right.
EXPECTED = {
    "keyframe overwritten, libx264, mkv": "with the block's header gone, FFmpeg skips to the next cluster"
    " without a word, as the ffmpeg command does"
}


@dataclass(frozen=True)
class Found:
    """The frames that a reader found in a file."""

    seconds: tuple[float, ...]
    digests: tuple[str, ...]  # of the pixels of each frame
    error: str | None


def by_framecache(path: Path) -> Found:
    seconds: list[float] = []
    digests: list[str] = []
    try:
        for batch in read_frames([path], sampling=Sampling()):
            seconds += batch.frame_seconds.tolist()
            digests += [_digest(frame) for frame in batch.pixels]
    except DecodeError as error:
        return Found(tuple(seconds), tuple(digests), str(error))
    return Found(tuple(seconds), tuple(digests), None)


def by_plain_loop(path: Path) -> Found:
    """PyAV as in its manual; like a player, it goes on after a packet that the decoder refuses."""
    frames, error = [], None
    try:
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_type = "NONE"
            for packet in container.demux(stream):
                try:
                    frames += packet.decode()
                except av.error.InvalidDataError as refused:
                    error = str(refused)
    except av.error.FFmpegError as refused:
        error = str(refused)
    times = [
        None if frame.pts is None or frame.time_base is None else float(frame.pts * frame.time_base)
        for frame in frames
    ]
    seconds = tuple(np.nan if t is None or times[0] is None else t - times[0] for t in times)
    return Found(seconds, tuple(_digest(frame.to_ndarray(format="rgb24")) for frame in frames), error)


def number_by_ffmpeg(path: Path) -> int | None:
    """How many frames the ffmpeg command shows; None where it is not installed."""
    if shutil.which("ffmpeg") is None:
        return None
    every_frame = ["-map", "0:v", "-vsync", "passthrough", "-f", "framecrc", "-"]  # a line each
    command = ["ffmpeg", "-v", "quiet", "-i", str(path), *every_frame]
    lines = subprocess.run(command, capture_output=True, check=False, text=True).stdout.splitlines()
    return sum(not line.startswith("#") for line in lines)


def _digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def sound_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of every combination that the encoders make."""
    for codec, encoder in ENCODERS.items():
        kinds = [(gop, suffix, encoder.pixels) for gop in encoder.gops for suffix in encoder.suffixes]
        kinds += [(f"default {pixels}", encoder.suffixes[0], pixels) for pixels in encoder.other_pixels]
        for gop, suffix, pixels in kinds:
            name = f"{codec} {gop} {suffix}"
            path = folder / f"{name.replace(' ', '_')}.{suffix}"
            write_video(
                path,
                num_frames=NUM_FRAMES,
                fps=25,
                codec=codec,
                pix_fmt=pixels,
                size=encoder.size,
                options={**encoder.options, **encoder.gops.get(gop, {})},
            )
            yield name, path


def odd_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) with odd headers, packets or times, whose frames are all good."""
    for suffix in ("mp4", "mkv", "mov", "ts"):
        yield f"message samples {suffix}", odd_videos.write_message_samples(folder / f"sei.{suffix}")
    for suffix in ("mp4", "mkv", "avi", "mov"):
        yield f"not coded {suffix}", odd_videos.write_not_coded(folder / f"not_coded.{suffix}")
    for suffix in ("mkv", "ts"):
        yield (
            f"undeclared reorder {suffix}",
            odd_videos.write_undeclared_reorder(folder / f"reorder.{suffix}"),
        )
    for suffix in ("mkv", "mp4"):
        for kind, options in OPEN_GOPS.items():
            whole = write_video(folder / f"whole_{kind}.{suffix}", num_frames=60, fps=25, options=options)
            cut = folder / f"begins_late_{kind}.{suffix}"
            yield (
                f"begins late, {kind}, {suffix}",
                odd_videos.without_first_packets(whole, cut, num_packets=15),
            )
    whole = write_video(folder / "whole.avi", num_frames=NUM_FRAMES, fps=25, codec="mpeg4")
    size = whole.stat().st_size
    yield "RIFF size is the file's avi", _patched(whole, folder / "riff.avi", {4: size.to_bytes(4, "little")})


def damaged_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) with frames missing: cut off, or with a keyframe overwritten."""
    for codec, suffix, options in (
        ("libx264", "mp4", {"movflags": "faststart"}),
        ("libx264", "mkv", {}),
        ("mpeg4", "avi", {}),
        ("libvpx-vp9", "webm", {}),
    ):
        plain = write_video(
            folder / f"plain_{codec}.mkv",
            num_frames=NUM_FRAMES,
            fps=25,
            codec=codec,
            options={**ENCODERS[codec].options, "g": "12"},
        )
        whole = folder / f"whole_{codec}.{suffix}"
        with av.open(plain) as reader, av.open(whole, "w", options=options) as writer:
            stream = writer.add_stream_from_template(reader.streams.video[0])
            for packet in reader.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    writer.mux(packet)
        content = whole.read_bytes()
        for share in (0.5, 0.7, 0.9):
            path = folder / f"cut_{share}_{codec}.{suffix}"
            path.write_bytes(content[: int(share * len(content))])
            yield f"cut at {share}, {codec}, {suffix}", path
        with av.open(whole) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        if codec != "libvpx-vp9" and packets[24].pos:
            yield (
                f"keyframe overwritten, {codec}, {suffix}",
                _patched(
                    whole, folder / f"hole_{codec}.{suffix}", {packets[24].pos: b"\xff" * packets[24].size}
                ),
            )


def _patched(source: Path, target: Path, changes: dict[int, bytes]) -> Path:
    content = bytearray(source.read_bytes())
    for offset, value in changes.items():
        content[offset : offset + len(value)] = value
    target.write_bytes(content)
    return target


def difference(path: Path, *, is_damaged: bool) -> str | None:
    """How the two readers differ; None where they agree."""
    ours, plain = by_framecache(path), by_plain_loop(path)
    if is_damaged:
        if ours.error is None:
            return "damage is not named"
        if not set(ours.digests) <= set(plain.digests):
            return "recovered frames that the plain loop does not find"
        return None
    if ours.error:
        return ours.error
    if len(ours.digests) != len(plain.digests):
        return f"{len(ours.digests)} frames, and {len(plain.digests)} by the plain loop"
    by_ffmpeg = number_by_ffmpeg(path)
    if by_ffmpeg is not None and by_ffmpeg != len(ours.digests):
        return f"{len(ours.digests)} frames, and {by_ffmpeg} by the ffmpeg command"
    if ours.digests != plain.digests:
        return "pixels"
    known = ~np.isnan(plain.seconds)
    if (
        known.all()
        and (np.diff(plain.seconds) > 0).all()
        and not np.allclose(ours.seconds, plain.seconds, atol=1e-9)
    ):
        return "times"
    if not (np.diff(ours.seconds) > 0).all():
        return "times do not increase"
    return None


def main() -> None:
    options = arguments(__doc__)
    os.environ["SVT_LOG"] = "1"  # errors
    kinds: dict[str, Callable[[Path], Iterator[tuple[str, Path]]]] = {
        "sound": sound_files,
        "odd": odd_files,
        "damaged": damaged_files,
    }
    rows: list[Row] = []
    surprises = 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for kind, make in kinds.items():
            num_files, differing = 0, {}
            for name, path in ProgressBar(make(Path(folder)), desc=kind, unit="file"):
                num_files += 1
                if (found := difference(path, is_damaged=kind == "damaged")) is not None:
                    differing[name] = found
                path.unlink()
            surprises += sum(name not in EXPECTED for name in differing)
            rows.append({"files": kind, "number": num_files, "differ": len(differing)})
            for name, found in differing.items():
                print(f"{name}: {found}" + (f" (expected: {EXPECTED[name]})" if name in EXPECTED else ""))
    report = Report("media", options.quick)
    report.add("Files read by framecache and by a plain loop", rows)
    report.write(options.json)
    if surprises:
        sys.exit(1)


if __name__ == "__main__":
    main()
