"""The loader: batches of padded samples, read ahead by threads."""

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import MissingClipError, StoreError
from pipeline.learn.streaming.buffers import Buffers, copy_ahead
from pipeline.learn.streaming.features import (
    CPU,
    Features,
    ResidentFeatures,
    is_finite,
    refuse_non_finite,
)
from pipeline.learn.streaming.samples import (
    Sample,
    crop_frames,
    cut_batches,
    cut_windows,
    draw_equally,
    draw_view,
    shuffle_batches,
)
from pipeline.manifest import Clip
from pipeline.settings.training import LoaderConfig

log = logging.getLogger(__name__)

_BATCHES_AHEAD = 2  # read while one is in use


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
        """Wait for the full batch. Raises the first error of a thread."""
        for part in self.parts:
            part.result()
        return self.batch

    def cancel(self) -> None:
        """Leave unread the parts that have not begun."""
        for part in self.parts:
            part.cancel()


@dataclass(frozen=True)
class Loader:
    """Streams the clips' features in batches, read ahead by threads.

    A sample is a clip; with `window`, a window of a clip, the last of which ends with the clip, so that every
    frame is in one; with `crop_frames` (which goes before `window`), a random run of so many frames. Of
    several `views`, one is drawn for each clip and epoch, among those that have the clip.
    """

    features: Features  # which also say how many frames a clip has
    clips: Sequence[Clip]
    batch_size: int
    num_threads: int
    _: KW_ONLY
    shuffle_seed: int | None = None  # None: in the order given
    window: int | None = None
    stride: int | None = None  # None: window
    crop_frames: int | None = None
    bucketing: bool = False  # of shuffled samples only
    # Of each clip, by its id: an epoch of shuffled samples has equally many of each label. None: all samples.
    labels: Mapping[str, Sequence[str]] | None = None
    views: Sequence[Features] = ()  # of the same frames; (): `features` alone
    device: torch.device = CPU  # where maps are wanted
    _buffers: Buffers = field(init=False, repr=False, compare=False)
    # Of each view and clip, which frames (T,) have been found finite.
    _finite_frames: dict[tuple[int, str], np.ndarray] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_finite_frames", {})
        object.__setattr__(self, "_buffers", Buffers(pinned=self.device.type == "cuda"))

    def __len__(self) -> int:
        """Batches of an epoch."""
        return math.ceil(len(self._samples) / self.batch_size)

    @cached_property
    def _samples(self) -> list[Sample]:
        """In the order of the clips, before crops."""
        window = None if self.crop_frames is not None else self.window
        return [
            sample
            for clip in self.clips
            for sample in cut_windows(
                clip, self.features.num_frames(clip.clip_id), window=window, stride=self.stride
            )
        ]

    @cached_property
    def _views(self) -> Sequence[Features]:
        return self.views or (self.features,)

    @cached_property
    def _views_of(self) -> dict[str, list[int]]:
        """The numbers of the views that have each clip, by its id."""
        found = {}
        for clip_id in (clip.clip_id for clip in self.clips):
            found[clip_id] = [number for number, view in enumerate(self._views) if clip_id in view]
            for view in (self._views[number] for number in found[clip_id]):
                if view.num_frames(clip_id) != self.features.num_frames(clip_id):
                    raise StoreError(
                        f"Clip {clip_id!r} has other numbers of frames in {view.path} and"
                        f" {self.features.path}. Extract both in one run."
                    )
            if not found[clip_id]:
                paths = ", ".join(str(view.path) for view in self._views)
                raise MissingClipError(f"Clip {clip_id!r} has no features in {paths}.")
        return found

    def epoch_samples(self, epoch: int = 0) -> list[list[Sample]]:
        """The samples of each batch of one epoch. They depend on seed and epoch alone."""
        samples = self._samples
        if self.crop_frames is not None:
            seed = f"{self.shuffle_seed}/{epoch}"
            samples = [crop_frames(sample, self.crop_frames, seed=seed) for sample in samples]
        if len(self._views) > 1:
            seed = f"{self.shuffle_seed}/{epoch}"
            of = self._views_of
            samples = [draw_view(sample, of[sample.clip.clip_id], seed=seed) for sample in samples]
        if self.shuffle_seed is None:
            return cut_batches(samples, self.batch_size)
        rng = np.random.default_rng([self.shuffle_seed, epoch])
        if self.labels is not None:
            samples = draw_equally(samples, self.labels, rng=rng)
        return shuffle_batches(samples, self.batch_size, rng=rng, bucketing=self.bucketing)

    def padding_share(self, epoch: int = 0) -> float:
        """The share of an epoch's frames that is padding. Reads nothing."""
        batches = self.epoch_samples(epoch)
        num_read = sum(sample.num_frames for batch in batches for sample in batch)
        num_padded = sum(len(batch) * max(sample.num_frames for sample in batch) for batch in batches)
        return 1 - num_read / num_padded

    def epoch(self, epoch: int = 0) -> Generator[Batch]:
        """The batches of one epoch, which depend on seed and epoch alone, not on the threads.

        While one batch is in use, two are being read or waiting. An error in a thread is raised here. When
        the iteration is abandoned, the threads end with it.

        Raises NonFiniteFeaturesError, with the clip, for features that are infinite or NaN.
        """
        batches = self.epoch_samples(epoch)
        if resident := self._resident():
            for features in resident:
                refuse_non_finite(features.non_finite_clips, path=features.path)
            return (self._gather(resident, samples) for samples in batches)
        return self._stream(batches) if self.device.type == "cpu" else self._to_gpu(self._stream(batches))

    def _resident(self) -> list[ResidentFeatures]:
        """The views, if they share one tensor on the device; else none."""
        found = [view for view in self._views if isinstance(view, ResidentFeatures)]
        together = len(found) == len(self._views) and all(view.rows is found[0].rows for view in found)
        return found if together and found[0].rows.device.type == self.device.type else []

    def _gather(self, views: Sequence[ResidentFeatures], samples: Sequence[Sample]) -> Batch:
        """One indexed copy from the tensor that holds all rows."""
        features = views[0]
        firsts = np.array(
            [views[each.view].spans[each.clip.clip_id][0] + each.first_frame for each in samples]
        )
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
        return _batch(samples, maps, np.where(valid, features.row_frame_seconds[index], np.nan))

    def _stream(self, batches: Iterable[Sequence[Sample]]) -> Generator[Batch]:
        with ThreadPoolExecutor(self.num_threads, thread_name_prefix="loader") as pool:
            waiting: deque[_Reading] = deque()
            try:
                for samples in batches:
                    waiting.append(self._begin_reading(samples, pool))
                    if len(waiting) > _BATCHES_AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for reading in waiting:
                    reading.cancel()

    def _begin_reading(self, samples: Sequence[Sample], pool: ThreadPoolExecutor) -> "_Reading":
        # Each thread reads a part: a single busy one would slow a thread of a CPU network, on which all wait.
        shape = (len(samples), max(sample.num_frames for sample in samples))
        maps = self._buffers.take((*shape, *self.features.map_shape), self.features.dtype)  # (B, T, C, H, W)
        frame_seconds = np.full(shape, np.nan)
        rows = list(zip(maps.numpy(), frame_seconds, samples, strict=True))
        parts = [pool.submit(self._read, rows[i :: self.num_threads]) for i in range(self.num_threads)]
        return _Reading(_batch(samples, maps, frame_seconds), parts)

    def _read(self, rows: Sequence[tuple[np.ndarray, np.ndarray, Sample]]) -> None:
        """Read each sample straight into its place in the padded batch."""
        for row, frame_seconds, (clip, first, count, number) in rows:
            view = self._views[number]
            view.read_into(clip.clip_id, row[:count], first_frame=first)
            seconds = view.frame_seconds(clip.clip_id)
            # Frames are checked once: the check takes about as long as reading from memory.
            finite = self._finite_frames.setdefault(
                (number, clip.clip_id), np.zeros(len(seconds), dtype=bool)
            )
            if not finite[first : first + count].all():
                if not is_finite(torch.from_numpy(row[:count])):
                    refuse_non_finite([clip.clip_id], path=view.path)
                finite[first : first + count] = True
            row[count:] = 0
            frame_seconds[:count] = seconds[first : first + count]

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
    num_threads: int = 2,
    shuffle_seed: int | None = None,
    labels: Callable[[Clip], Sequence[str]] = lambda _: (),
    views: Sequence[Features] = (),
) -> Loader:
    """The loader that `config` describes: with `shuffle_seed` for training, else for evaluation.

    `views` has the features of `config.views`, of which training draws; (): `features` alone.

    In evaluation, every frame is read, in the order of the clips: there are no crops, no bucketing and no
    balanced sampling, which makes the `labels` of clips equally frequent.
    """
    training = shuffle_seed is not None
    names = {clip.clip_id: labels(clip) for clip in clips} if config.balanced_sampling and training else {}
    loader = Loader(
        features,
        clips,
        config.batch_size,
        num_threads,
        shuffle_seed=shuffle_seed,
        window=config.window,
        stride=config.stride,
        crop_frames=config.crop_frames if training else None,
        bucketing=config.bucketing and training,
        labels=names if any(names.values()) else None,
        views=views,
        device=device,
    )
    if training:
        log.info(
            "Batches in an epoch: %d; %.0f %% of their frames are padding.",
            len(loader),
            100 * loader.padding_share(),
        )
    return loader


def _batch(samples: Sequence[Sample], maps: Tensor, frame_seconds: np.ndarray) -> Batch:
    return Batch(
        clips=tuple(sample.clip for sample in samples),
        maps=maps,
        lengths=torch.tensor([sample.num_frames for sample in samples]),
        frame_seconds=torch.from_numpy(frame_seconds),
        first_frames=tuple(sample.first_frame for sample in samples),
    )
