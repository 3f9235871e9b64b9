"""Streaming: clips flow from a store into padded batches; what all of them say of a channel."""

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.contract import FeatureContract
from pipeline.manifest import Clip

log = logging.getLogger(__name__)


class Features(Protocol):
    """What training needs of cached features: a view of the store, or clips held in memory."""

    @property
    def path(self) -> Path: ...
    @property
    def contract(self) -> FeatureContract: ...
    @property
    def map_shape(self) -> tuple[int, int, int]: ...  # (C, H, W)
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __contains__(self, clip_id: str) -> bool: ...
    def num_frames(self, clip_id: str) -> int: ...
    def read_into(self, clip_id: str, out: np.ndarray[Any, Any], *, first_frame: int = 0) -> None: ...


@dataclass(frozen=True)
class Batch:
    """Clips padded to the longest. On the CPU, as read."""

    clips: tuple[Clip, ...]
    maps: Tensor  # (B, T, C, H, W), as stored; zeros after a clip's last frame
    lengths: Tensor  # (B,) int64: frames of each clip


@dataclass(frozen=True)
class Loader:
    """Streams the clips' features in batches, read ahead by threads."""

    features: Features
    clips: Sequence[Clip]
    batch_size: int
    num_threads: int
    shuffle_seed: int | None = None  # None: in the order given

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self.clips) / self.batch_size)

    def epoch(self, epoch: int = 0) -> Iterator[Batch]:
        """The batches of one epoch; the same for the same seed and epoch, whatever the threads do.

        At most `num_threads` batches are being read or waiting. An error in a thread is raised here; when
        the iteration is abandoned, the threads end with it.
        """
        order = np.arange(len(self.clips))
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, epoch]).permutation(order)
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="loader") as pool:
            waiting: deque[Future[Batch]] = deque()
            try:
                for start in range(0, len(order), self.batch_size):
                    clips = tuple(self.clips[i] for i in order[start : start + self.batch_size])
                    waiting.append(pool.submit(read_batch, self.features, clips))
                    if len(waiting) > self.num_threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def read_batch(features: Features, clips: tuple[Clip, ...]) -> Batch:
    """The clips' features, each read straight into its place of the padded buffer."""
    lengths = [features.num_frames(clip.clip_id) for clip in clips]
    buffer = np.zeros((len(clips), max(lengths), *features.map_shape), features.dtype)  # (B, T, C, H, W)
    for row, clip, length in zip(buffer, clips, lengths, strict=True):
        features.read_into(clip.clip_id, row[:length])
    return Batch(clips, torch.from_numpy(buffer), torch.tensor(lengths))


@dataclass(frozen=True)
class ResidentFeatures:
    """Features of some clips held in memory, in one array."""

    path: Path
    contract: FeatureContract
    rows: np.ndarray[Any, Any]  # (N, C, H, W)
    spans: dict[str, tuple[int, int]]  # clip_id -> first row, number of rows

    @property
    def map_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.rows.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.rows.dtype
        return dtype

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self.spans

    def num_frames(self, clip_id: str) -> int:
        return self.spans[clip_id][1]

    def read_into(self, clip_id: str, out: np.ndarray[Any, Any], *, first_frame: int = 0) -> None:
        """Copy frames into `out` (T, C, H, W); as many as it has room for."""
        first = self.spans[clip_id][0] + first_frame
        out[:] = self.rows[first : first + len(out)]


def keep_resident(features: Features, clips: Sequence[Clip], *, limit_bytes: int) -> Features:
    """The clips' features read into memory once, if they take at most `limit_bytes`; else as they are."""
    frames = [features.num_frames(clip.clip_id) for clip in clips]
    size_bytes = sum(frames) * int(np.prod(features.map_shape)) * features.dtype.itemsize
    if size_bytes > limit_bytes:
        log.info("Features take %d MB: streamed from the store in every epoch.", size_bytes >> 20)
        return features
    rows = np.empty((sum(frames), *features.map_shape), features.dtype)  # (N, C, H, W)
    spans = {}
    first = 0
    for clip, count in zip(clips, frames, strict=True):
        features.read_into(clip.clip_id, rows[first : first + count])
        spans[clip.clip_id] = (first, count)
        first += count
    return ResidentFeatures(features.path, features.contract, rows, spans)


def with_features(clips: Sequence[Clip], features: Features) -> list[Clip]:
    """The clips that have features; the others (quarantined at extraction) are named in a warning."""
    found = [clip for clip in clips if clip.clip_id in features]
    if missing := [clip.clip_id for clip in clips if clip.clip_id not in features]:
        shown = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        log.warning("%d of %d clips have no features and are left out: %s", len(missing), len(clips), shown)
    return found


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each channel."""

    mean: Tensor  # (C,) float32
    std: Tensor  # (C,) float32; 1 where a channel is constant


def channel_statistics(features: Features, clips: Sequence[Clip]) -> Standardisation:
    """Over all frames and locations of the clips, in float64. Give it the train split and nothing else."""
    channels, height, width = features.map_shape
    total, total_squares = np.zeros(channels), np.zeros(channels)
    num_values = 0
    for clip in clips:
        buffer = np.empty((features.num_frames(clip.clip_id), channels, height, width), features.dtype)
        features.read_into(clip.clip_id, buffer)
        values = buffer.astype(np.float64)  # (T, C, H, W)
        total += values.sum(axis=(0, 2, 3))
        total_squares += np.einsum("tchw,tchw->c", values, values)
        num_values += values.size // channels
    mean = total / num_values
    variance = np.maximum(total_squares / num_values - mean**2, 0)
    std = np.where(variance > 1e-12 * (mean**2 + 1e-12), np.sqrt(variance), 1.0)
    return Standardisation(torch.from_numpy(mean).float(), torch.from_numpy(std).float())
