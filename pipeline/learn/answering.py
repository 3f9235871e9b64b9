"""Answering: a model's answers about clips, in eval mode."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from pipeline.errors import NonFiniteError, few
from pipeline.learn.metrics import UNLABELLED
from pipeline.learn.models import ClipModel, LateFusion
from pipeline.learn.models.chunks import answer_in_chunks
from pipeline.learn.streaming import Batch, Features
from pipeline.learn.streaming.features import is_finite, refuse_non_finite
from pipeline.learn.tasks import Predictions, Task
from pipeline.manifest import Clip


@dataclass(frozen=True)
class _Answer:
    """A model's output for one sample, and its target."""

    clip: Clip
    first_frame: int
    output: Any
    target: Tensor
    frame_seconds: Tensor  # (T,)


class Answering:
    """A model in eval mode, and its answers about the clips of the batches so far; see `answer_batches`."""

    def __init__(
        self,
        model: nn.Module,
        *,
        task: Task,
        device: torch.device,
        shuffle_seed: int | None = None,
        labelled: bool = True,
    ) -> None:
        self._model = model.eval()
        self._task = task
        self._device = device
        self._shuffle_seed = shuffle_seed
        self._labelled = labelled
        self._non_finite: dict[str, None] = {}  # clips, in order
        self._answers: dict[str, list[_Answer]] = defaultdict(list)

    @torch.inference_mode()
    def add(self, batch: Batch) -> None:
        """Answer about the samples of a batch."""
        task = self._task
        targets = self._targets(batch)  # (B, ...)
        maps = batch.maps.to(self._device)
        order = None if self._shuffle_seed is None else _shuffled(batch, seed=self._shuffle_seed)
        shown = maps if order is None else _take_frames(maps, order)
        outputs = task.answers(self._model, replace(batch, maps=shown))
        if isinstance(outputs, Tensor):
            outputs = outputs.cpu()
            if task.facts.per_frame and task.about_frames and order is not None:
                outputs = _take_frames(outputs, order.argsort(dim=1))
        for clip, first, length, seconds, output, target in zip(
            batch.clips,
            batch.first_frames,
            batch.lengths.tolist(),
            batch.frame_seconds,
            outputs,
            targets,
            strict=True,
        ):
            if task.facts.per_frame:
                output, target = output[:length], target[:length]
            self._keep(_Answer(clip, first, output, target, seconds[:length]))

    @torch.inference_mode()
    def add_clip(self, clip: Clip, features: Features, *, chunk_frames: int) -> None:
        """Answer about a whole clip, of which at most `chunk_frames` frames at a time are in memory.

        Raises ConfigError for a model that reads clips in one piece only, NonFiniteFeaturesError for features
        that are infinite or NaN.
        """
        num_frames = features.num_frames(clip.clip_id)
        seconds = torch.from_numpy(features.frame_seconds(clip.clip_id).copy())
        lengths, no_maps = torch.tensor([num_frames]), torch.empty(1, num_frames, 0, 0, 0)
        batch = Batch((clip,), no_maps, lengths, seconds[None], first_frames=(0,))
        order = None if self._shuffle_seed is None else _shuffled(batch, seed=self._shuffle_seed)[0]

        def read(first: int, count: int) -> Tensor:
            maps = np.empty((count, *features.map_shape), features.dtype)
            if order is None:
                features.read_into(clip.clip_id, maps, first_frame=first)
            else:
                for row, frame in enumerate(order[first : first + count].tolist()):
                    features.read_into(clip.clip_id, maps[row : row + 1], first_frame=frame)
            found = torch.from_numpy(maps)
            if not is_finite(found):
                refuse_non_finite([clip.clip_id], path=features.path)
            return found[None].to(self._device)

        model = cast(ClipModel | LateFusion, self._model)
        output = answer_in_chunks(model, read, num_frames=num_frames, chunk_frames=chunk_frames)
        output = output.float().cpu()
        if self._task.facts.per_frame and self._task.about_frames and order is not None:
            output = output[order.argsort()]
        self._keep(_Answer(clip, 0, output, self._targets(batch)[0], seconds))

    def _targets(self, batch: Batch) -> Tensor:
        if self._labelled:
            return self._task.targets(batch)
        return torch.full(batch.frame_seconds.shape, UNLABELLED)

    def _keep(self, answer: _Answer) -> None:
        if not self._task.finite_part(answer.output).isfinite().all():
            self._non_finite[answer.clip.clip_id] = None
        self._answers[answer.clip.clip_id].append(answer)

    @torch.inference_mode()
    def predictions(self) -> Predictions:
        """The answers, one a clip. Raises NonFiniteError, with the clips, for those that are not finite."""
        if self._non_finite:
            raise NonFiniteError(
                f"The model's answers for {len(self._non_finite)} of {len(self._answers)} clips are infinite"
                f" or NaN: {few(self._non_finite)}. Their features are finite, so its weights have diverged:"
                " train with a lower learning_rate or grad_clip."
            )
        merged = [_merge(windows, per_frame=self._task.facts.per_frame) for windows in self._answers.values()]
        return Predictions(
            clips=tuple(answer.clip for answer in merged),
            outputs=tuple(answer.output for answer in merged),
            targets=tuple(answer.target for answer in merged),
            frame_seconds=tuple(answer.frame_seconds for answer in merged),
        )


def answer_batches(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task,
    device: torch.device,
    shuffle_seed: int | None = None,
    labelled: bool = True,
) -> Predictions:
    """Run the model, in eval mode, on batches; its answers about their clips.

    With `shuffle_seed` the model sees the frames of each sample in an order drawn from seed and sample. This
    control tells whether it uses their order. An answer about a frame is put back to that frame's place.
    Clips without targets need `labelled=False`; all their targets are UNLABELLED.

    Raises NonFiniteError, with the clips, for answers that are infinite or NaN.
    """
    answering = Answering(model, task=task, device=device, shuffle_seed=shuffle_seed, labelled=labelled)
    for batch in batches:
        answering.add(batch)
    return answering.predictions()


def mean_predictions(several: Sequence[Predictions], *, task: Task) -> Predictions:
    """The answers about the first one's clips: of each clip the mean over all predictions that have it."""
    first, *others = several
    if not others:
        return first
    found = [dict(zip((clip.clip_id for clip in each.clips), each.outputs, strict=True)) for each in several]
    outputs = (
        torch.stack([answers[clip.clip_id] for answers in found if clip.clip_id in answers])
        for clip in first.clips
    )
    return replace(first, outputs=tuple(map(task.mean_answer, outputs)))


def _merge(windows: list[_Answer], *, per_frame: bool) -> _Answer:
    """The mean of a clip's windows; with an answer a frame, frame by frame."""
    if len(windows) == 1:
        return windows[0]
    num_frames = max(window.first_frame + len(window.frame_seconds) for window in windows)
    seconds = torch.full((num_frames,), torch.nan, dtype=torch.float64)
    for window in windows:
        seconds[_frames(window)] = window.frame_seconds
    if not per_frame:
        output = torch.stack([window.output for window in windows]).mean(dim=0)
        return replace(windows[0], output=output, frame_seconds=seconds)
    total = windows[0].output.new_zeros(num_frames, windows[0].output.shape[1])  # (T, K)
    count = total.new_zeros(num_frames, 1)
    target = windows[0].target.new_zeros(num_frames, *windows[0].target.shape[1:])  # (T, ...)
    for window in windows:
        total[_frames(window)] += window.output
        count[_frames(window)] += 1
        target[_frames(window)] = window.target
    return replace(windows[0], output=total / count, target=target, frame_seconds=seconds)


def _frames(window: _Answer) -> slice:
    return slice(window.first_frame, window.first_frame + len(window.frame_seconds))


def _shuffled(batch: Batch, *, seed: int) -> Tensor:
    """Frame numbers (B, T): those of each sample in random order, then those of its padding."""
    order = torch.arange(batch.maps.shape[1]).repeat(len(batch.clips), 1)
    for row, clip, first, length in zip(
        order, batch.clips, batch.first_frames, batch.lengths.tolist(), strict=True
    ):
        rng = np.random.default_rng([seed, first, xxhash.xxh3_64_intdigest(clip.clip_id.encode())])
        row[:length] = torch.from_numpy(rng.permutation(length))
    return order


def _take_frames(values: Tensor, order: Tensor) -> Tensor:
    """The frames of values (B, T, ...) in the order (B, T)."""
    return values[torch.arange(len(order))[:, None], order]
