"""Several labels at once: any number of classes a clip, or a frame."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.learn.metrics import (
    UNLABELLED,
    Measure,
    best_thresholds,
    measure_labels,
    measure_loss,
    measure_together,
)
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.classification import Classification, focal_losses
from pipeline.learn.tasks.frame_labels import label_seconds, shown_labels
from pipeline.learn.tasks.segments import frame_edges
from pipeline.learn.tasks.task import (
    Predictions,
    Rows,
    answer_table,
)
from pipeline.manifest import Clip
from pipeline.settings.tasks import TASKS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Multilabel(Classification):
    """Any number of classes a clip, from the manifest's column `label`: each has a probability of its own.

    A clip without a label has none of the classes. A class is said where its probability is at least its
    threshold.
    """

    thresholds: tuple[float, ...] | None = None  # chosen on the val split by `tuned`; None: 0.5

    name: ClassVar[str] = "multilabel"
    min_classes: ClassVar[int] = 1

    def tuned(self, predictions: Predictions | None) -> Self:
        """The task with the threshold of each class that has the highest F1 in these predictions."""
        if predictions is None:
            return replace(self, thresholds=None)
        outputs, targets, _ = predictions.rows(per_frame=self.facts.per_frame)
        probabilities = self._probabilities(outputs).numpy()
        return replace(self, thresholds=best_thresholds(probabilities, targets.numpy() == 1))

    def targets(self, batch: Batch) -> Tensor:
        """(B, K) int8: 1 for each class that a clip has, else 0."""
        numbers = self._numbers()
        targets = torch.zeros(len(batch.clips), self.num_outputs, dtype=torch.int8)
        for row, clip in zip(targets, batch.clips, strict=True):
            row[[numbers[name] for name in clip.labels]] = 1
        return targets

    def keep_rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and their weights (M,): the logits of many classes would fill the memory."""
        return self._losses(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """The loss, from losses and their weights (M,)."""
        return {"loss": float((outputs * targets).sum() / targets.sum())}

    def _measure_predictions(self, predictions: Predictions, *, ranked: bool) -> Measure:
        outputs, targets, clips = predictions.rows(per_frame=self.facts.per_frame)
        losses, weights = (values.numpy() for values in self._losses(outputs.double(), targets))
        return measure_together(
            measure_loss(losses * weights, weights, clips=clips),
            measure_labels(
                self._probabilities(outputs).numpy(),
                targets.numpy() == 1,
                thresholds=self._thresholds(),
                clips=clips,
                ranked=ranked,
                per_frame=self.facts.per_frame,
            ),
        )

    def _losses(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses, each the mean over classes, and their weights (M,) of logits and targets (..., K)."""
        logits, marks = outputs.reshape(-1, self.num_outputs), targets.reshape(-1, self.num_outputs)
        positive = (marks == 1).to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, positive, reduction="none")  # (M, K)
        losses = focal_losses(losses, gamma=self.focal_gamma)
        if self.class_weights:
            losses = losses * torch.where(marks == 1, logits.new_tensor(self.class_weights), 1.0)
        return losses.mean(dim=1), (marks[:, 0] != UNLABELLED).to(logits.dtype)

    def tabulate(self, predictions: Predictions) -> pa.Table:
        """A row a clip, or a frame with its `frame_seconds`; truth and answer are lists of labels."""
        outputs, targets, clips = predictions.rows(per_frame=self.facts.per_frame)
        losses, weights = self._losses(outputs.double(), targets)
        probabilities = self._probabilities(outputs)
        places = {}
        if self.facts.per_frame:
            places["frame_seconds"] = pa.array(torch.cat(predictions.frame_seconds).numpy())
        return answer_table(
            [predictions.clips[number] for number in clips],
            places=places,
            truth=self._label_lists(targets.numpy() == 1),
            answer=self._label_lists(probabilities.numpy() >= self._thresholds()),
            probabilities=probabilities,
            classes=self.classes,
            losses=losses,
            loss_weights=weights,
        )

    def mean_answer(self, outputs: Tensor) -> Tensor:
        """As `Task.mean_answer`, of each class alone."""
        sure, not_sure = (functional.logsigmoid(x).logsumexp(dim=0) for x in (outputs, -outputs))
        return sure - not_sure

    def interpret(self, outputs: Tensor) -> Tensor:
        """Logits (..., K) as probabilities, each of its class alone."""
        return outputs.sigmoid()

    def render(self, output: Tensor, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
        """Logits (K,) as all classes that are said and their probabilities, the likeliest first."""
        values, numbers = self._probabilities(output).sort(descending=True)
        return [
            {"label": self.classes[number], "probability": value}
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True)
            if value >= self._thresholds()[number]
        ]

    def _probabilities(self, outputs: Tensor) -> Tensor:
        """Logits (..., K) as float32 probabilities, which thresholds, metrics and tables have in common."""
        return self.interpret(outputs.double()).float()

    def _thresholds(self) -> np.ndarray:
        return np.array(self.thresholds or [0.5] * self.num_outputs)

    def _label_lists(self, marked: np.ndarray) -> pa.ListArray:
        """The names of the classes (M, K) that are marked, a list a row."""
        ends = np.append(0, marked.sum(axis=1).cumsum()).astype(np.int32)
        return pa.ListArray.from_arrays(ends, pa.array(self.classes).take(pa.array(marked.nonzero()[1])))

    @classmethod
    def _amount_in_all(cls, clip: Clip) -> float:  # noqa: ARG003
        """The amount of a label that the clip has from its beginning to its end; here 1."""
        return 1.0

    @classmethod
    def _balanced_weights(cls, amounts: Mapping[str, float], clips: Sequence[Clip]) -> dict[str, float]:
        """Weights of positive rows with which they count as much as the negative ones, class by class."""
        total = sum(map(cls._amount_in_all, clips))
        # A class that is always there would have 0, and would not be trained.
        return {name: max(total / amount - 1, 0.01) for name, amount in amounts.items()}

    @classmethod
    def _refuse_unfit(cls, clips: Sequence[Clip]) -> None:
        if num_without := sum(not cls._amounts(clip) for clip in clips):
            log.info(
                "%d of %d %s clips have no %s: they count as clips with none of the classes.",
                num_without,
                len(clips),
                clips[0].split,
                TASKS[cls.name].column,
            )


@dataclass(frozen=True)
class FrameMultilabel(Multilabel):
    """Any number of classes a frame, from the column `frame_labels`, whose intervals may overlap.

    A frame outside of all intervals has none of the classes.
    """

    name: ClassVar[str] = "frame_multilabel"

    def targets(self, batch: Batch) -> Tensor:
        """(B, T, K) int8: 1 for each class that a frame has, else 0; UNLABELLED after a sample's end."""
        numbers = self._numbers()
        targets = torch.zeros(*batch.frame_seconds.shape, self.num_outputs, dtype=torch.int8)
        for rows, seconds, clip in zip(targets, batch.frame_seconds, batch.clips, strict=True):
            for name, shown in shown_labels(clip, seconds):
                rows[shown, numbers[name]] = 1
            rows[seconds.isnan()] = UNLABELLED
        return targets

    def render(self, output: Tensor, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
        """Logits (T, K) as intervals like the manifest's, by their starts: runs of frames with a class.

        They end as those of `FrameLabels.render` do, and so does the probability mean the same.
        """
        values = self._probabilities(output)
        said = (values.numpy() >= self._thresholds()).astype(np.int8)  # (T, K)
        changes = np.diff(said, axis=0, prepend=0, append=0)  # (T + 1, K)
        seconds = frame_edges(frame_seconds).tolist()
        return [
            {
                "start_seconds": seconds[first],
                "end_seconds": seconds[end],
                "label": self.classes[number],
                "probability": values[first:end, number].mean().item(),
            }
            for first, number, end in sorted(
                (first, number, end)
                for number, column in enumerate(changes.T)
                for first, end in zip(
                    *((column == sign).nonzero()[0].tolist() for sign in (1, -1)), strict=True
                )
            )
        ]

    def render_frames(self, output: Tensor, frame_seconds: Tensor) -> Rows:
        """Logits (T, K) as a row for each label of a frame, the likeliest first, with the frame's time.

        A frame without a label has a row with its time alone.
        """
        return [
            {"frame_seconds": seconds, **row}
            for logits, seconds in zip(output, frame_seconds.tolist(), strict=True)
            for row in Multilabel.render(self, logits, frame_seconds) or [{}]
        ]

    @classmethod
    def _amounts(cls, clip: Clip) -> dict[str, float]:
        """The seconds of each label in the clip."""
        return label_seconds(clip)

    @classmethod
    def _amount_in_all(cls, clip: Clip) -> float:
        """The clip's seconds; up to the end of its last label, where the manifest does not have its end."""
        ends = [clip.end_seconds] if clip.end_seconds else [item.end_seconds for item in clip.frame_labels]
        return max(ends, default=0.0) - (clip.start_seconds or 0.0)
