"""Stores to measure: clips of 16 maps in float16, half of their values zero, as after a ReLU."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.contract import FeatureContract, Preprocessing, Sampling
from pipeline.extraction import Target, publish_view
from pipeline.settings.extract import StoreConfig
from pipeline.store import ClipSource, Journal, ShardWriter, committing, layout_for

NUM_FRAMES = 16
ROW_SHAPE = (512, 7, 7)
CLIP_SHAPE = (NUM_FRAMES, *ROW_SHAPE)
CLIP_BYTES = int(np.prod(CLIP_SHAPE)) * 2

Container = Literal["zarr", "hdf5"]
Codec = Literal["none", "lz4", "zstd"]
CONTAINER_NAMES: tuple[Container, ...] = ("zarr", "hdf5")

CONTRACT = FeatureContract(
    sampling=Sampling(),
    preprocessing=Preprocessing(),
    mean=(0.5, 0.5, 0.5),
    std=(0.25, 0.25, 0.25),
    arch="resnet18",
    weights_sha256="0" * 64,
    tap="layer4",
)


def make_target(
    container: Container, codec: Codec = "none", *, row_shape: tuple[int, int, int] = ROW_SHAPE
) -> Target:
    config = StoreConfig(format=container, codec=codec)
    return Target(CONTRACT, layout_for(config, row_shape=row_shape, dtype=CONTRACT.dtype))


def make_clips(num_clips: int, *, row_shape: tuple[int, int, int] = ROW_SHAPE) -> list[np.ndarray]:
    """Maps (T, C, H, W) of each clip; views of one block."""
    rng = np.random.default_rng(0)
    block = np.empty((num_clips, NUM_FRAMES, *row_shape), np.float16)
    for clip in block:
        clip[:] = np.maximum(rng.standard_normal(clip.shape, np.float32), 0)
    return list(block)


def clip_id(number: int) -> str:
    return f"clip{number:07d}"


def clip_key(number: int) -> bytes:
    return number.to_bytes(16)


def write_clips(folder: Path, target: Target, clips: Iterable[np.ndarray]) -> None:
    """Through a ShardWriter, clip after clip, until all is on the disk."""
    directory = Journal(folder).directory(target.contract, target.layout)
    writer = ShardWriter(directory, contract=target.contract, layout=target.layout, commit_seconds=1e9)
    times = np.arange(NUM_FRAMES) / 25
    with committing(writer):
        for number, maps in enumerate(clips):
            source = ClipSource(clip_key(number), clip_id(number), f"{clip_id(number)}.mp4")
            writer.append(source, maps, times, final=True)


def publish_clips(folder: Path, target: Target, num_clips: int, *, journal: Path) -> Path:
    """The published view's folder."""
    keys = {clip_id(number): clip_key(number) for number in range(num_clips)}
    publish_view(keys, targets=[target], journal=Journal(journal), path=folder)
    return folder / target.contract.tap
