"""Writing alone: raw files, and the engine when its frames and features cost no time."""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks.corpora import VIDEO_FRAMES
from benchmarks.report import Row, seconds_of
from benchmarks.stores import clip_id, clip_key, make_target
from pipeline.contract import FrameView, Preprocessing
from pipeline.extraction import PlannedClip, compute_clips
from pipeline.extraction.runners import Outputs, Wait
from pipeline.frames import FrameBatch
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.store import Journal

ROW_SHAPE = (2048, 7, 7)  # of ResNet-50's layer4, in float16
ROW_BYTES = int(np.prod(ROW_SHAPE)) * 2


def write_rates(
    folders: Mapping[str, Path], *, size_mb: int, num_threads: Sequence[int], num_rounds: int
) -> list[Row]:
    """write + fsync by so many threads, and the engine with as many writers, in turns; the best of each."""
    rows = []
    for name, folder in folders.items():
        for count in num_threads:
            rates = [
                (raw_rate(folder, size_mb, count), engine_rate(folder, size_mb, count))
                for _ in range(num_rounds)
            ]
            raw, engine = map(max, zip(*rates, strict=True))
            row = {"where": name, "threads": count, "gb_per_s": raw, "engine_gb_per_s": engine}
            rows.append({**row, "ratio": engine / raw})
    return rows


def raw_rate(folder: Path, size_mb: int, num_threads: int) -> float:
    """GB/s of files of 256 MB in writes of 8, flushed to the disk."""
    block = np.random.default_rng(0).integers(0, 256, 8 << 20, np.uint8)

    def write(number: int) -> None:
        for part in range(max(1, size_mb // num_threads // 256)):
            with (folder / f"raw-{number}-{part}").open("wb", buffering=0) as file:
                for _ in range(min(32, size_mb // num_threads // 8)):
                    file.write(block.data)
                os.fsync(file.fileno())

    seconds = seconds_of(partial(in_threads, write, num_threads))
    size_bytes = sum(path.stat().st_size for path in folder.glob("raw-*"))
    for path in folder.glob("raw-*"):
        path.unlink()
    return size_bytes / seconds / 1e9


def in_threads(work: Callable[[int], None], num_threads: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def engine_rate(folder: Path, size_mb: int, num_writers: int) -> float:
    """GB/s of the engine from clips to committed shards, with an `InstantRunner`."""
    num_clips = max(1, (size_mb << 20) // (VIDEO_FRAMES * ROW_BYTES))
    clips = [Clip(clip_id(number), (f"{number}.mp4",), "train") for number in range(num_clips)]
    runner = InstantRunner()
    with (
        free_frames(np.zeros((VIDEO_FRAMES, 1, 1, 3), np.uint8)),
        mock.patch("pipeline.extraction.engine.make_runner", return_value=runner),
    ):
        result = compute_clips(
            [PlannedClip(clip, clip_key(i), "new", ("layer4",)) for i, clip in enumerate(clips)],
            root=folder,
            targets=[make_target("zarr", row_shape=ROW_SHAPE)],
            backbone=mock.Mock(device=torch.device("cpu")),
            journal=Journal(folder / "journal"),
            config=ExtractConfig(preprocessing=Preprocessing()),
            machine=Machine(num_writers=num_writers, num_decoders=4),
        )
    assert result.num_bytes == num_clips * VIDEO_FRAMES * ROW_BYTES
    shutil.rmtree(folder / "journal")
    return result.num_bytes / result.seconds / 1e9


@contextlib.contextmanager
def free_frames(pixels: np.ndarray) -> Iterator[None]:
    """Within the block nothing is decoded: every clip has the frames (T, H, W, 3), in pieces of 16."""

    def read(*_: object, **__: object) -> Iterator[FrameBatch]:
        for first in range(0, len(pixels), 16):
            frames = pixels[first : first + 16]
            yield FrameBatch(frames, np.arange(first, first + len(frames)) / 25)

    with mock.patch("pipeline.extraction.decode.read_frames", read):
        yield


class InstantRunner:
    """A network that takes no time: every batch of 256 has the same rows."""

    depth = 1

    def __init__(self) -> None:
        self.batch = torch.zeros(256, 3, 1, 1, dtype=torch.uint8)
        rows = np.ones((len(self.batch), *ROW_SHAPE), np.float16)
        self._outputs: Outputs[np.ndarray] = Outputs(
            {"layer4": rows}, {"layer4": np.ones(len(rows), np.float32)}
        )

    def prepare(self, pixels: Tensor, views: Sequence[FrameView]) -> list[Tensor]:
        return [pixels.permute(0, 3, 1, 2)] * len(views)

    def submit(self) -> Wait:
        return lambda: self._outputs
