"""The loader: which frames of which clips make a batch, and reading them ahead."""

import logging
import math
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property
from typing import Annotated, NamedTuple, Self

import numpy as np
import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor

from pipeline.learn.streaming.buffers import Buffers, copy_ahead
from pipeline.learn.streaming.features import (
    CPU,
    Features,
    ResidentFeatures,
    is_finite,
    refuse_non_finite,
)
from pipeline.manifest import Clip

log = logging.getLogger(__name__)

# Samples that are sorted by length together: more is less padding, fewer is a better shuffle.
_BATCHES_PER_BUCKETING = 100

# Batches that are read while one is computed with.
_BATCHES_AHEAD = 2


class LoaderConfig(BaseModel):
    """How features become batches."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: PositiveInt = 32  # samples: clips, or windows of clips
    window: PositiveInt | None = None  # frames of a sample: a longer clip is several; null: whole clips
    stride: PositiveInt | None = None  # frames from one window's start to the next's; null: window
    crop: PositiveInt | None = None  # train on so many frames of a clip, others each epoch; null: no crop
    bucketing: bool = False  # batches of clips of similar length: less padding
    num_threads: PositiveInt = 2  # that read features
    resident_mb: Annotated[int, Field(ge=0)] = 2048  # features up to this size are kept in memory
    resident_gpu_mb: Annotated[int, Field(ge=0)] | None = None  # on the GPU; null: half of what is free there

    @model_validator(mode="after")
    def _no_frame_is_lost(self) -> Self:
        if self.stride and not self.window:
            raise ValueError(f"stride {self.stride} needs a window; set window, or stride to null")
        if self.stride and self.window and self.stride > self.window:
            raise ValueError(
                f"stride {self.stride} is larger than window {self.window}: the frames between windows would "
                "never be seen; set stride to at most window"
            )
        return self


class Sample(NamedTuple):
    """Consecutive frames of a clip."""

    clip: Clip
    first_frame: int
    num_frames: int


@dataclass(frozen=True)
class Batch:
    """Samples padded to the longest."""

    clips: tuple[Clip, ...]  # of each sample; the same clip occurs again for its other windows
    maps: Tensor  # (B, T, C, H, W) as stored, on the loader's device; zeros after a sample's last frame
    lengths: Tensor  # (B,) int64, on the CPU: frames of each sample
    frame_seconds: Tensor  # (B, T) float64, on the CPU: time in the source; NaN after the last frame
    first_frames: tuple[int, ...]  # where each sample starts in its clip


@dataclass(frozen=True)
class _Reading:
    """A batch that threads are filling."""

    batch: Batch
    parts: Sequence[Future[None]]

    def result(self) -> Batch:
        """Once it is full. Raises the first error of a thread."""
        for part in self.parts:
            part.result()
        return self.batch

    def cancel(self) -> None:
        """Parts that have not begun are not read."""
        for part in self.parts:
            part.cancel()


@dataclass(frozen=True)
class Loader:
    """Streams the clips' features in batches, read ahead by threads.

    A clip is a sample; with `window`, each of its windows is, the last one flush with the clip's end so
    that every frame is in one. With `crop`, windows or not, a random run of so many frames of each clip is.
    """

    features: Features
    clips: Sequence[Clip]
    batch_size: int
    num_threads: int
    _: KW_ONLY
    shuffle_seed: int | None = None  # None: in the order given
    window: int | None = None
    stride: int | None = None  # None: window
    crop: int | None = None
    bucketing: bool = False  # only where samples are shuffled
    device: torch.device = CPU  # where maps are wanted
    _buffers: Buffers = field(init=False, repr=False, compare=False)
    _sound: set[tuple[str, int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sound", set())
        object.__setattr__(self, "_buffers", Buffers(pinned=self.device.type == "cuda"))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self._samples) / self.batch_size)

    @cached_property
    def _samples(self) -> list[Sample]:
        """In the order of the clips, before crops."""
        samples = []
        for clip in self.clips:
            num_frames = self.features.num_frames(clip.clip_id)
            if self.window is None or self.crop is not None:
                samples.append(Sample(clip, 0, num_frames))
            else:
                for first in window_starts(num_frames, window=self.window, stride=self.stride):
                    samples.append(Sample(clip, first, min(self.window, num_frames)))
        return samples

    def plan(self, epoch: int = 0) -> list[list[Sample]]:
        """The samples of each batch of one epoch: a function of seed and epoch and nothing else."""
        samples = self._samples
        if self.crop is not None:
            samples = [_crop(sample, self.crop, seed=f"{self.shuffle_seed}/{epoch}") for sample in samples]
        if self.shuffle_seed is None:
            return _cut(samples, self.batch_size)
        rng = np.random.default_rng([self.shuffle_seed, epoch])
        samples = [samples[i] for i in rng.permutation(len(samples))]
        if not self.bucketing:
            return _cut(samples, self.batch_size)
        batches = [
            batch
            for part in _cut(samples, self.batch_size * _BATCHES_PER_BUCKETING)
            for batch in _cut(sorted(part, key=lambda sample: sample.num_frames), self.batch_size)
        ]
        return [batches[i] for i in rng.permutation(len(batches))]

    def padding_share(self, epoch: int = 0) -> float:
        """The share of an epoch's frames that is padding. Reads nothing."""
        batches = self.plan(epoch)
        num_read = sum(sample.num_frames for batch in batches for sample in batch)
        num_padded = sum(len(batch) * max(sample.num_frames for sample in batch) for batch in batches)
        return 1 - num_read / num_padded

    def epoch(self, epoch: int = 0) -> Generator[Batch]:
        """The batches of one epoch; the same for the same seed and epoch, whatever the threads do.

        While one batch is in use, two are being read or waiting. An error in a thread is raised here; when
        the iteration is abandoned, the threads end with it.

        Raises NonFiniteError, with the clip, for features that are infinite or NaN.
        """
        batches = self.plan(epoch)
        features = self.features
        if isinstance(features, ResidentFeatures) and features.rows.device.type == self.device.type:
            refuse_non_finite(features.non_finite_clips, path=features.path)
            return (self._gather(features, samples) for samples in batches)
        return self._stream(batches) if self.device.type == "cpu" else self._to_gpu(self._stream(batches))

    def _gather(self, features: ResidentFeatures, samples: Sequence[Sample]) -> Batch:
        """One indexed copy from the tensor that holds all rows."""
        firsts = np.array([features.spans[clip.clip_id][0] + first for clip, first, _ in samples])
        lengths = np.array([sample.num_frames for sample in samples])
        steps = np.arange(lengths.max())
        valid = steps < lengths[:, None]  # (B, T)
        index = np.where(valid, firsts[:, None] + steps, 0)
        shape = (*index.shape, *features.map_shape)
        flat = torch.from_numpy(index.reshape(-1)).to(self.device)
        if self.device.type == "cpu":
            maps = self._buffers.take(shape, features.dtype)
            torch.index_select(features.rows, 0, flat, out=maps.view(-1, *features.map_shape))
        else:
            maps = features.rows.index_select(0, flat).view(shape)
        if not valid.all():
            maps.flatten(0, 1)[torch.from_numpy(np.flatnonzero(~valid)).to(self.device)] = 0
        return _batch(samples, maps, np.where(valid, features.seconds[index], np.nan))

    def _stream(self, batches: Iterable[Sequence[Sample]]) -> Generator[Batch]:
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="loader") as pool:
            waiting: deque[_Reading] = deque()
            try:
                for samples in batches:
                    waiting.append(self._start(samples, pool))
                    if len(waiting) > _BATCHES_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for reading in waiting:
                    reading.cancel()

    def _start(self, samples: Sequence[Sample], pool: ThreadPoolExecutor) -> "_Reading":
        """Each thread reads a part: one that reads alone takes its time from one of a CPU network's cores,
        and the others wait.
        """
        shape = (len(samples), max(sample.num_frames for sample in samples))
        maps = self._buffers.take((*shape, *self.features.map_shape), self.features.dtype)  # (B, T, C, H, W)
        seconds = np.full(shape, np.nan)
        rows = list(zip(maps.numpy(), seconds, samples, strict=True))
        parts = [pool.submit(self._read, rows[i :: self.num_threads]) for i in range(self.num_threads)]
        return _Reading(_batch(samples, maps, seconds), parts)

    def _read(self, rows: Sequence[tuple[np.ndarray, np.ndarray, Sample]]) -> None:
        """Each sample straight into its place of the padded batch."""
        for row, row_seconds, (clip, first, count) in rows:
            self.features.read_into(clip.clip_id, row[:count], first_frame=first)
            # Looked at once: it takes about as long as reading from memory.
            if (clip.clip_id, first, count) not in self._sound:
                if not is_finite(torch.from_numpy(row[:count])):
                    refuse_non_finite([clip.clip_id], path=self.features.path)
                self._sound.add((clip.clip_id, first, count))
            row[count:] = 0
            row_seconds[:count] = self.features.frame_seconds(clip.clip_id)[first : first + count]

    def _to_gpu(self, batches: Iterable[Batch]) -> Generator[Batch]:
        hosts: deque[Batch] = deque()

        def maps() -> Generator[Tensor]:
            for batch in batches:
                hosts.append(batch)
                yield batch.maps

        for copy in copy_ahead(maps(), self.device):
            yield replace(hosts.popleft(), maps=copy)


def make_loader(
    features: Features,
    clips: Sequence[Clip],
    config: LoaderConfig,
    *,
    device: torch.device,
    shuffle_seed: int | None = None,
) -> Loader:
    """The loader that `config` describes: with `shuffle_seed` for training, else for evaluation.

    Evaluation sees every frame, in the order of the clips; crops and bucketing are training's.
    """
    training = shuffle_seed is not None
    loader = Loader(
        features,
        clips,
        config.batch_size,
        config.num_threads,
        shuffle_seed=shuffle_seed,
        window=config.window,
        stride=config.stride,
        crop=config.crop if training else None,
        bucketing=config.bucketing and training,
        device=device,
    )
    if training:
        log.info(
            "Batches in an epoch: %d; %.0f %% of their frames are padding.",
            len(loader),
            100 * loader.padding_share(),
        )
    return loader


def window_starts(num_frames: int, *, window: int, stride: int | None = None) -> list[int]:
    """First frames of the windows of a clip: every `stride` (None: `window`), and one flush with the end.

    10 frames, window 4, stride 3: 0, 3, 6. 11 frames: 0, 3, 6, 7. A clip that is no longer than the window
    has one.
    """
    last = max(num_frames - window, 0)
    starts = list(range(0, last + 1, stride or window))
    return starts if starts[-1] == last else [*starts, last]


def _crop(sample: Sample, num_frames: int, *, seed: str) -> Sample:
    """A run of frames that a hash of seed and clip chooses: no other clip has a say in it."""
    clip, first, length = sample
    if length <= num_frames:
        return sample
    chosen = xxhash.xxh3_64_intdigest(f"{seed}/{clip.clip_id}".encode()) % (length - num_frames + 1)
    return Sample(clip, first + chosen, num_frames)


def _cut(samples: list[Sample], size: int) -> list[list[Sample]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _batch(samples: Sequence[Sample], maps: Tensor, seconds: np.ndarray) -> Batch:
    return Batch(
        clips=tuple(sample.clip for sample in samples),
        maps=maps,
        lengths=torch.tensor([sample.num_frames for sample in samples]),
        frame_seconds=torch.from_numpy(seconds),
        first_frames=tuple(sample.first_frame for sample in samples),
    )
