"""What a machine with a GPU can do: the network, decoders and disks alone, and the engine beside them.

Ends within ten minutes (--minutes): measurements that would not fit are left out and listed. `--small` is a
trial run on a CPU.
"""

import argparse
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.corpora import (
    FULL_SIZE,
    VIDEO,
    VIDEO_FRAMES,
    copy_video,
    default_device,
    encode_smaller,
    extract,
    make_weights,
)
from benchmarks.decoding import tiny_rates
from benchmarks.report import Report, Row
from benchmarks.writers import ROW_BYTES, free_frames, write_rates
from pipeline.backbone import Backbone, Weights, preprocess
from pipeline.contract import Backend, Precision, Preprocessing
from pipeline.extraction import make_targets
from pipeline.extraction.decode import Piece, decoding
from pipeline.extraction.lanes import make_lanes
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.runners import make_runner
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.system.memory import keep_freed_memory
from pipeline.system.supervisor import Notes

WRITING = "Raw write + fsync, and the engine with frames and features that cost no time"


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    arch: str
    preprocessing: Preprocessing
    batch_sizes: tuple[int, ...]
    precisions: tuple[Precision, ...]
    measure_seconds: float
    num_threads: tuple[int, ...]  # of decoding
    write_mb: int
    num_clips: int  # of VIDEO_FRAMES frames each
    num_free_clips: int  # same, of frames that are in memory: more, since these runs are short


SMALL = Scale(
    arch="resnet18",
    preprocessing=Preprocessing(resize=64, crop=64),
    batch_sizes=(8, 16),
    precisions=("float32", "bfloat16"),
    measure_seconds=0.3,
    num_threads=(1, 2),
    write_mb=32,
    num_clips=1,
    num_free_clips=2,
)
FULL = Scale(
    arch="resnet50",
    preprocessing=FULL_SIZE,
    batch_sizes=(64, 128, 256, 512),
    precisions=("float16", "bfloat16", "float32"),
    measure_seconds=3.0,
    num_threads=(1, 2, 4, 8, 16, 32),
    write_mb=4096,
    num_clips=200,
    num_free_clips=800,
)


@dataclass
class Clock:
    """The time that is left, and the measurements that did not fit."""

    ends: float
    skipped: list[str] = field(default_factory=list)

    def has_time_for(self, what: str, *, seconds: float) -> bool:
        if time.monotonic() + seconds < self.ends:
            return True
        self.skipped.append(what)
        print(f"No time for: {what}", flush=True)
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="resnet18 at 64 pixels, seconds on a CPU")
    parser.add_argument("--minutes", type=float, default=9.5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--folder", type=Path, default=Path(), help="on the disk that is to be measured (here)"
    )
    args = parser.parse_args()
    keep_freed_memory()  # as every stage does
    scale = SMALL if args.small else FULL
    device = default_device()
    if not args.small and device.type == "cpu":
        parser.error("torch sees no GPU: use --small")
    clock = Clock(time.monotonic() + 60 * args.minutes)
    report = Report("gpu", args.small)
    if device.type == "cuda":
        report.machine["gpu"] = torch.cuda.get_device_name(device)
        print(report.machine["gpu"], flush=True)
    weights = make_weights(scale.arch)

    def written() -> None:
        report.write(args.json)  # after each table: a machine may be taken away

    with contextlib.ExitStack() as stack:
        folders = {"disk": Path(stack.enter_context(tempfile.TemporaryDirectory(dir=args.folder)))}
        memory = Path("/dev/shm")
        if (
            memory.is_dir()
            and shutil.disk_usage(memory).free > 2 * scale.num_free_clips * VIDEO_FRAMES * ROW_BYTES
        ):
            folders["tmpfs"] = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=memory)))
        writing = write_rates(folders, size_mb=scale.write_mb, num_threads=(1, 4), num_rounds=1)
        report.add(WRITING, writing)
        written()
        decode = decode_rates(folders["disk"] / "corpora", scale, clock, pinned=device.type == "cuda")
        report.add("Decoding alone", decode)
        tiny = tiny_rates(folders["disk"] / "tiny", num_threads=scale.num_threads[:5])
        report.add("Decoding tiny videos: the cost of a frame and of an opened file", tiny)
        report.add("Resizing and cropping alone", resize_rates(scale, device))
        written()
        # The engine's figures first, then the variants of the network, as long as there is time.
        forward = forward_rates(scale, weights, device, clock, variants=False)
        report.add("The engine", engine_rates(report, folders, scale, weights, device, clock, forward))
        written()
        forward += forward_rates(scale, weights, device, clock, variants=True)
        report.add("The network alone, frames on the device", forward)
        report.tables["left out"] = [{"what": what} for what in clock.skipped]
        written()


def decode_rates(folder: Path, scale: Scale, clock: Clock, *, pinned: bool) -> list[Row]:
    """The engine's decoding lane alone: its frames are thrown away."""
    small = encode_smaller(VIDEO, folder / "small.mp4", width=640, height=272)
    rows = []
    for name, video in (("1280x720", VIDEO), ("640x272", small)):
        clips = copy_video(video, folder / name, num_clips=scale.num_clips)
        planned = [PlannedClip(clip, clip.clip_id.encode(), "new", ("layer4",)) for clip in clips]
        for num_threads in scale.num_threads:
            some = planned[: max(1, min(len(planned), 4 * num_threads))]
            seconds_expected = len(some) * VIDEO_FRAMES / 200 / num_threads
            if num_threads > 2 * (os.cpu_count() or 1) or not clock.has_time_for(
                f"decode {name}, {num_threads} threads", seconds=seconds_expected
            ):
                continue
            lanes = make_lanes(num_decoders=num_threads)
            started = time.perf_counter()
            with decoding(
                some,
                root=folder / name,
                config=ExtractConfig(preprocessing=FULL_SIZE),
                lanes=lanes,
                pinned=pinned,
                notes=Notes(),
            ) as pieces:
                num_frames = sum(len(piece.pixels) for piece in pieces if isinstance(piece, Piece))
            assert num_frames == len(some) * VIDEO_FRAMES
            rate = num_frames / (time.perf_counter() - started)
            rows.append({"video": name, "threads": num_threads, "frames_per_s": rate})
    return rows


def resize_rates(scale: Scale, device: torch.device) -> list[Row]:
    """Frames/s that are on the device, in pieces of 16."""
    rows = []
    for width, height in ((640, 272), (1280, 720), (1920, 1080)):
        pixels = torch.randint(0, 256, (16, height, width, 3), dtype=torch.uint8, device=device)
        work = partial(preprocess, pixels, scale.preprocessing)
        rate = len(pixels) * repeats_per_s(work, partial(synchronise, device), scale.measure_seconds)
        rows.append({"video": f"{width}x{height}", "frames_per_s": rate})
    return rows


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_rates(
    scale: Scale, weights: Weights, device: torch.device, clock: Clock, *, variants: bool
) -> list[Row]:
    """The engine's default alone, or all variants: eager and compiled, each precision and batch size."""
    default_size = scale.batch_sizes[-2]
    default: tuple[Precision, Backend, int] = (scale.precisions[0], "eager", default_size)
    if not variants:
        return [forward_rate(scale, weights, device, *default)]
    rows = []
    backends: tuple[Backend, ...] = ("eager",) if device.type == "cpu" else ("eager", "inductor")
    for backend in backends:
        for precision in scale.precisions:
            for batch_size in scale.batch_sizes:
                variant = (precision, backend, batch_size)
                what = f"forward {precision} {backend} {batch_size}"
                seconds = 2 * scale.measure_seconds + (60 if backend == "inductor" else 5)
                if backend == "inductor" and batch_size != default_size:
                    continue
                if variant != default and clock.has_time_for(what, seconds=seconds):
                    rows.append(forward_rate(scale, weights, device, *variant))
    return rows


def forward_rate(
    scale: Scale,
    weights: Weights,
    device: torch.device,
    precision: Precision,
    backend: Backend,
    batch_size: int,
) -> Row:
    """Frames/s of the network called plainly, and of the engine's runner (a CUDA graph, rows back)."""
    config = ExtractConfig(preprocessing=scale.preprocessing, precision=precision, backend=backend)
    backbone = Backbone(weights, taps=["layer4"], device=device, precision=precision, backend=backend)
    targets = make_targets(config, weights, backbone)
    started = time.perf_counter()
    runner = make_runner(
        backbone,
        targets,
        preprocessing=scale.preprocessing,
        batch_size=batch_size,
        lanes=make_lanes(num_decoders=1),
    )
    setup_seconds = time.perf_counter() - started
    runner.batch.random_(0, 256)

    def plain() -> None:
        backbone(runner.batch)

    def graph() -> None:
        under_way.append(runner.submit())
        if len(under_way) >= runner.depth:
            under_way.pop(0)()

    under_way: list[Callable[[], Any]] = []
    wait = partial(synchronise, device)
    return {
        "precision": precision,
        "backend": backend,
        "batch_size": batch_size,
        "setup_s": setup_seconds,
        "plain_frames_per_s": batch_size * repeats_per_s(plain, wait, scale.measure_seconds),
        "runner_frames_per_s": batch_size * repeats_per_s(graph, wait, scale.measure_seconds),
    }


def repeats_per_s(work: Callable[[], object], wait: Callable[[], None], seconds: float) -> float:
    work()
    wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(4):
            work()
        count += 4
        wait()
    return count / (time.perf_counter() - started)


def engine_rates(
    report: Report,
    folders: dict[str, Path],
    scale: Scale,
    weights: Weights,
    device: torch.device,
    clock: Clock,
    forward: Sequence[Row],
) -> list[Row]:
    """Frames in memory and mp4 to a committed store, against the slowest of its lanes alone."""
    forward_rate_alone = max(forward[0]["plain_frames_per_s"], forward[0]["runner_frames_per_s"])
    decode_rate = max(
        row["frames_per_s"] for row in report.tables["Decoding alone"] if row["video"] == "1280x720"
    )
    write_rate = {
        name: max(row["gb_per_s"] for row in report.tables[WRITING] if row["where"] == name)
        for name in folders
    }
    corpora = {"mp4": folders["disk"] / "corpora/1280x720", "memory": folders["disk"] / "corpora/free"}
    corpora["memory"].mkdir()
    for number in range(scale.num_free_clips):
        (corpora["memory"] / f"{number:05d}.mp4").write_text(str(number))
    rows: list[Row] = []
    for tap in ("layer4", "avgpool"):
        for where, folder in folders.items():
            for source in ("memory", "mp4"):
                what = f"engine {tap} {source} {where}"
                number = scale.num_clips if source == "mp4" else scale.num_free_clips
                clips = [Clip(f"clip{n:05d}", (f"{n:05d}.mp4",), "train") for n in range(number)]
                rate = min(forward_rate_alone, decode_rate if source == "mp4" else forward_rate_alone)
                if not clock.has_time_for(what, seconds=2 * len(clips) * VIDEO_FRAMES / rate + 5):
                    continue
                config = ExtractConfig(
                    taps=(tap,),
                    preprocessing=scale.preprocessing,
                    precision=scale.precisions[0],
                )
                backbone = Backbone(weights, taps=[tap], device=device, precision=config.precision)
                with frames_in_memory(scale) if source == "memory" else contextlib.nullcontext():
                    result = extract(
                        clips,
                        root=corpora[source],
                        folder=folder / "out",
                        weights=weights,
                        backbone=backbone,
                        config=config,
                        machine=Machine(batch_size=scale.batch_sizes[-2]),
                    )
                shutil.rmtree(folder / "out")
                limits = {
                    "forward": forward_rate_alone,
                    "write": write_rate[where] * 1e9 * result.num_frames / result.num_bytes,
                } | ({"decode": decode_rate} if source == "mp4" else {})
                slowest = min(limits, key=lambda name: limits[name])
                frames_per_s = result.num_frames / result.seconds
                rows.append(
                    {
                        "tap": tap,
                        "frames_from": source,
                        "to": where,
                        "frames_per_s": frames_per_s,
                        "slowest_alone": slowest,
                        "its_frames_per_s": limits[slowest],
                        "ratio": frames_per_s / limits[slowest],
                        "target": ">= 0.9",
                        "gpu_idle_share": 1 - result.lanes["compute"].busy_seconds / result.seconds,
                        "limited_by": result.lane_report()["limited_by"],
                    }
                )
    return rows


def frames_in_memory(scale: Scale) -> contextlib.AbstractContextManager[None]:
    """Within the block nothing is decoded: every clip gives the same frames, in the network's size."""
    height, width = scale.preprocessing.crop_size
    side = scale.preprocessing.resize
    size = (side, side) if isinstance(side, int) else (height, width)
    return free_frames(np.random.default_rng(0).integers(0, 256, (VIDEO_FRAMES, *size, 3), np.uint8))


if __name__ == "__main__":
    main()
