"""Classification of frames: one class each, in segments."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import ConfigError, few
from pipeline.learn.metrics import UNLABELLED, Measure, measure_segments, measure_together
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.classification import Classification
from pipeline.learn.tasks.segments import frame_edges, merge_short_segments, smoothing_loss
from pipeline.learn.tasks.task import Predictions, Rows, raise_if_any
from pipeline.manifest import Clip
from pipeline.settings.tasks import SegmentsConfig, TaskConfig


@dataclass(frozen=True)
class FrameLabels(Classification):
    """One class a frame, from the manifest's column `frame_labels`, by the time at which a frame is shown.

    A frame outside of all intervals has no target, and counts neither in the loss nor in a metric. Segments
    are those of the frames that are left.
    """

    segments: SegmentsConfig = SegmentsConfig()

    name: ClassVar[str] = "frame_labels"

    @classmethod
    def _refuse_unfit(cls, clips: Sequence[Clip]) -> None:
        cls._refuse_missing(clips)
        raise_if_any(
            f"Clip {clip.clip_id!r} has frame_labels that overlap, {first.label} until"
            f" {first.end_seconds:g} s and {second.label} from {second.start_seconds:g} s: the task"
            f" {cls.name!r} takes one label a frame. Choose the task 'frame_multilabel', or correct the"
            " manifest."
            for clip in clips
            if clip.overlap
            for first, second in [clip.overlap]
        )

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """As `Classification.from_clips`. Raises ConfigError for a background that the clips do not have."""
        task = replace(super().from_clips(clips, config), segments=config.segments)
        if unknown := set(config.segments.background) - set(task.classes):
            raise ConfigError(
                f"segments.background has {few(sorted(unknown))}, which no clip of the train split has."
                f" Labels: {', '.join(task.classes)}."
            )
        return task

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `describe`."""
        segments = SegmentsConfig.model_validate(description["segments"])
        return replace(super().from_description(description), segments=segments)

    def describe(self) -> dict[str, Any]:
        """Classes, their weights, and the settings of segments."""
        return {**super().describe(), "segments": self.segments.model_dump(mode="json")}

    def with_options(self, **options: Any) -> Self:
        """The task, cleaning answers with other values of these fields of SegmentsConfig."""
        return replace(self, segments=self.segments.model_copy(update=options))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """As `Classification.loss`, from logits (B, T, K), and with `segments.smoothing` its weighted loss.

        The metric `loss` is without it.
        """
        loss, segments = super().loss(outputs, targets), self.segments
        if not segments.smoothing:
            return loss
        return loss + segments.smoothing * smoothing_loss(outputs, targets, limit=segments.smoothing_limit)

    def frame_classes(self, output: Tensor, frame_seconds: Tensor) -> np.ndarray:
        """The answer for each frame of a clip, a class number (T,), from logits (T, K).

        It is the likeliest class; with `segments.min_seconds`, after short segments are merged.
        """
        likeliest = output.argmax(dim=1).numpy()
        if not self.segments.min_seconds:
            return likeliest
        edges = frame_edges(frame_seconds)
        return merge_short_segments(likeliest, edges, min_seconds=self.segments.min_seconds)

    def _answers(self, predictions: Predictions) -> np.ndarray:
        pairs = zip(predictions.outputs, predictions.frame_seconds, strict=True)
        return np.concatenate([self.frame_classes(output, seconds) for output, seconds in pairs])

    def _measure_predictions(self, predictions: Predictions, *, ranked: bool) -> Measure:
        outputs, targets, clips = predictions.rows(per_frame=True)
        answers = self._answers(predictions)
        return measure_together(
            self._measure(outputs, targets, clips, answers=answers, ranked=ranked),
            measure_segments(
                answers,
                targets.numpy(),
                clips=clips,
                num_clips=len(predictions.clips),
                background=[self.classes.index(name) for name in self.segments.background],
            ),
        )

    def targets(self, batch: Batch) -> Tensor:
        """Class numbers (B, T) int64; UNLABELLED outside of all intervals and after a sample's end."""
        numbers = self._numbers()
        targets = torch.full(batch.frame_seconds.shape, UNLABELLED)
        for row, seconds, clip in zip(targets, batch.frame_seconds, batch.clips, strict=True):
            for name, shown in shown_labels(clip, seconds):
                row[shown] = numbers[name]
        return targets

    def render(self, output: Tensor, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
        """Logits (T, K) as intervals like the manifest's: runs of frames with the same answer.

        They have no gaps; `frame_edges` says where the last one ends. The probability is the label's mean
        over the frames.
        """
        numbers, edges = self.frame_classes(output, frame_seconds), frame_edges(frame_seconds)
        values = self._probabilities(output, numbers)  # (T,)
        changes = (np.flatnonzero(np.diff(numbers)) + 1).tolist()
        return [
            {
                "start_seconds": float(edges[first]),
                "end_seconds": float(edges[end]),
                "label": self.classes[numbers[first]],
                "probability": values[first:end].mean().item(),
            }
            for first, end in pairwise([0, *changes, len(numbers)])
        ]

    def render_frames(self, output: Tensor, frame_seconds: Tensor) -> Rows:
        """Logits (T, K) as a row a frame: its time, its label and the label's probability."""
        numbers = self.frame_classes(output, frame_seconds)
        rows = zip(
            frame_seconds.tolist(), numbers, self._probabilities(output, numbers).tolist(), strict=True
        )
        return [
            {"frame_seconds": seconds, "label": self.classes[number], "probability": value}
            for seconds, number, value in rows
        ]

    def _probabilities(self, output: Tensor, numbers: np.ndarray) -> Tensor:
        """Of each frame (T,), the probability of the class that it has for an answer."""
        return self.interpret(output).gather(1, torch.from_numpy(numbers)[:, None])[:, 0]

    @classmethod
    def _amounts(cls, clip: Clip) -> dict[str, float]:
        """The seconds of each label in the clip."""
        return label_seconds(clip)


def label_seconds(clip: Clip) -> dict[str, float]:
    """The seconds of each label in the clip."""
    first = clip.start_seconds or 0.0
    end = math.inf if clip.end_seconds is None else clip.end_seconds
    seconds: dict[str, float] = {}
    for item in clip.frame_labels:
        inside = min(item.end_seconds, end) - max(item.start_seconds, first)
        if inside > 0:
            seconds[item.label] = seconds.get(item.label, 0.0) + inside
    return seconds


def shown_labels(clip: Clip, seconds: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The label of each interval that has frames, and which (T,) of the frames at these times (T,) it has."""
    for item in clip.frame_labels:
        shown = (seconds >= item.start_seconds) & (seconds < item.end_seconds)  # NaN: in none
        if shown.any():
            yield item.label, shown
