"""Classification: one class a clip, or one a frame."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ManifestError
from pipeline.learn.metrics import UNLABELLED, Measure, measure_classes, measure_loss, measure_together
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import (
    Predictions,
    Task,
    answer_table,
    raise_if_any,
    refuse_without_target,
)
from pipeline.manifest import Clip
from pipeline.settings.tasks import TASKS, TaskConfig


@dataclass(frozen=True)
class Classification(Task):
    """One class a clip, from the manifest's column `label`."""

    classes: tuple[str, ...]
    class_weights: tuple[float, ...] | None = None  # of each class in the loss

    name: ClassVar[str] = "classification"

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """Make the classes of the labels of the train split's clips, sorted.

        Raises ManifestError for a clip without a label, or when all have the same one.
        """
        cls._refuse_missing(clips)
        amounts: Counter[str] = Counter()
        for clip in clips:
            amounts.update(cls._amounts(clip))
        classes = tuple(sorted(amounts))
        if len(classes) < 2:
            raise ManifestError(
                f"The train split has only the label {classes[0]!r}: {cls.name} needs at least two. Check the"
                f" manifest's column {TASKS[cls.name].column!r}."
            )
        if config.class_weights is None:
            return cls(classes)
        mean = sum(amounts.values()) / len(classes)
        return cls(classes, tuple(mean / amounts[name] for name in classes))

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `describe`."""
        weights = description["class_weights"]
        return cls(tuple(description["classes"]), None if weights is None else tuple(weights))

    def describe(self) -> dict[str, Any]:
        """Classes and their weights."""
        return asdict(self)

    @property
    def num_outputs(self) -> int:
        """The number of classes, K."""
        return len(self.classes)

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ManifestError for a clip without a label, or with one that is not among the classes."""
        self._refuse_missing(clips)
        known = set(self.classes)
        raise_if_any(
            f"Clip {clip.clip_id!r} has {self.facts.column} {label!r}, which the train split does not have."
            f" Known: {', '.join(self.classes)}. Correct the manifest, or move such clips to the train split."
            for clip in clips
            for label in self._amounts(clip).keys() - known
        )

    def targets(self, batch: Batch) -> Tensor:
        """Class numbers (B,) int64."""
        numbers = self._numbers()
        return torch.tensor([numbers[clip.label or ""] for clip in batch.clips])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of logits (..., K) and class numbers (...): weighted mean of labelled ones, or 0."""
        losses, weights = self._losses(outputs, targets)
        return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Loss, accuracy and macro F1 of logits (M, K) and class numbers (M,)."""
        rows = np.arange(len(targets))
        return self._measure(outputs.cpu(), targets.cpu(), rows, ranked=False)(np.ones(len(rows)))

    def measure(self, predictions: Predictions) -> Measure:
        """Loss, accuracy, macro F1 and mAP of all clips, or of all labelled frames."""
        return self._measure(*predictions.rows(per_frame=self.facts.per_frame), ranked=True)

    def measure_monitor(self, predictions: Predictions, monitor: str) -> Measure:
        """Like `measure`, without mAP unless it is asked for: it takes ten to a hundred times as long."""
        rows = predictions.rows(per_frame=self.facts.per_frame)
        return self._measure(*rows, ranked=monitor == "mAP")

    def _measure(self, outputs: Tensor, targets: Tensor, clips: np.ndarray, *, ranked: bool) -> Measure:
        losses, weights = (values.numpy() for values in self._losses(outputs.double(), targets))
        return measure_together(
            measure_loss(losses * weights, weights, clips=clips),
            measure_classes(outputs, targets, clips=clips, ranked=ranked),
        )

    def _losses(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy and its weights (M,) of logits (..., K), class numbers (...); both 0: unlabelled."""
        logits, numbers = outputs.reshape(-1, self.num_outputs), targets.reshape(-1)
        weights = (numbers != UNLABELLED).to(logits.dtype)
        if self.class_weights:
            weights *= logits.new_tensor(self.class_weights)[numbers.clamp(min=0)]
        losses = functional.cross_entropy(logits, numbers, ignore_index=UNLABELLED, reduction="none")
        return losses, weights

    def tabulate(self, predictions: Predictions) -> pa.Table:
        """A row a clip, or a labelled frame with its `frame_seconds`."""
        outputs, targets, clips = predictions.rows(per_frame=self.facts.per_frame)
        labelled = targets != UNLABELLED
        outputs, targets = outputs[labelled].double(), targets[labelled]  # (M, K), (M,)
        losses, weights = self._losses(outputs, targets)
        places = {}
        if self.facts.per_frame:
            places["frame_seconds"] = pa.array(torch.cat(predictions.frame_seconds)[labelled].numpy())
        classes = pa.array(self.classes)
        return answer_table(
            [predictions.clips[number] for number in clips[labelled.numpy()]],
            places=places,
            truth=classes.take(pa.array(targets.numpy())),
            answer=classes.take(pa.array(outputs.argmax(dim=1).numpy())),
            probabilities=self.interpret(outputs),
            classes=self.classes,
            losses=losses,
            loss_weights=weights,
        )

    def interpret(self, outputs: Tensor) -> Tensor:
        """Logits (..., K) as probabilities."""
        return outputs.softmax(dim=-1)

    def render(
        self,
        output: Tensor,
        frame_seconds: Tensor,  # noqa: ARG002
        *,
        num_answers: int = 1,
    ) -> list[dict[str, str | float]]:
        """Logits (K,) as the likeliest labels and their probabilities."""
        values, numbers = self.interpret(output).topk(min(num_answers, self.num_outputs))
        return [
            {"label": self.classes[number], "probability": value}
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
        ]

    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes)}

    @classmethod
    def _amounts(cls, clip: Clip) -> dict[str, float]:
        """The amount of each label in the clip; here 1."""
        return {} if clip.label is None else {clip.label: 1.0}

    @classmethod
    def _refuse_missing(cls, clips: Sequence[Clip]) -> None:
        missing = (clip for clip in clips if not cls._amounts(clip))
        refuse_without_target(missing, task=cls.name, target=TASKS[cls.name].column)


@dataclass(frozen=True)
class FrameLabels(Classification):
    """One class a frame, from the manifest's column `frame_labels`, by the time at which a frame is shown.

    A frame outside of all intervals has no target, and counts neither in the loss nor in a metric.
    """

    name: ClassVar[str] = "frame_labels"

    def targets(self, batch: Batch) -> Tensor:
        """Class numbers (B, T) int64; UNLABELLED outside of all intervals and after a sample's end."""
        numbers = self._numbers()
        targets = torch.full(batch.frame_seconds.shape, UNLABELLED)
        for row, seconds, clip in zip(targets, batch.frame_seconds, batch.clips, strict=True):
            for item in clip.frame_labels:
                shown = (seconds >= item.start_seconds) & (seconds < item.end_seconds)  # NaN: in none
                row[shown] = numbers[item.label]
        return targets

    def render(
        self,
        output: Tensor,
        frame_seconds: Tensor,
        *,
        num_answers: int = 1,  # noqa: ARG002
    ) -> list[dict[str, str | float]]:
        """Logits (T, K) as intervals like the manifest's: runs of frames with the same likeliest label.

        An interval ends where the next one begins; the last one ends a frame's mean duration after its last
        frame (a second, if there is one frame). The probability is the mean over the frames.
        """
        values, numbers = self.interpret(output).max(dim=1)  # (T,)
        changes = (numbers.diff().nonzero().flatten() + 1).tolist()
        seconds = frame_seconds.tolist()
        mean_duration = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else 1.0
        seconds.append(seconds[-1] + mean_duration)
        return [
            {
                "start_seconds": seconds[first],
                "end_seconds": seconds[end],
                "label": self.classes[numbers[first]],
                "probability": values[first:end].mean().item(),
            }
            for first, end in pairwise([0, *changes, len(numbers)])
        ]

    @classmethod
    def _amounts(cls, clip: Clip) -> dict[str, float]:
        """The seconds of each label in the clip."""
        first = clip.start_seconds or 0.0
        end = math.inf if clip.end_seconds is None else clip.end_seconds
        seconds: dict[str, float] = {}
        for item in clip.frame_labels:
            inside = min(item.end_seconds, end) - max(item.start_seconds, first)
            if inside > 0:
                seconds[item.label] = seconds.get(item.label, 0.0) + inside
        return seconds
