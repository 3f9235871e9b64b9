"""Classification: one class a clip, or one a frame."""

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ManifestError, few
from pipeline.learn.metrics import (
    UNLABELLED,
    Measure,
    measure_classes,
    measure_loss,
    measure_together,
)
from pipeline.learn.streaming import Batch
from pipeline.learn.tasks.task import (
    Predictions,
    Rows,
    Task,
    answer_table,
    raise_if_any,
    refuse_without_target,
)
from pipeline.manifest import Clip
from pipeline.settings.tasks import TASKS, TaskConfig

log = logging.getLogger(__name__)

_FEW_CLIPS = 5  # of a class in the train split: fewer are worth a warning


@dataclass(frozen=True)
class Classification(Task):
    """One class a clip, from the manifest's column `label`."""

    classes: tuple[str, ...]
    class_weights: tuple[float, ...] | None = None  # of each class in the loss
    focal_gamma: float = 0.0  # of the focal loss; 0: cross-entropy

    name: ClassVar[str] = "classification"
    min_classes: ClassVar[int] = 2

    @classmethod
    def from_clips(cls, clips: Sequence[Clip], config: TaskConfig) -> Self:
        """Make the classes of the labels of the train split's clips, sorted.

        Warns of classes with fewer than five clips. Raises ManifestError for clips whose labels do not suit
        the task, or when there are too few classes.
        """
        cls._refuse_unfit(clips)
        amounts: Counter[str] = Counter()
        num_clips: Counter[str] = Counter()
        for clip in clips:
            amounts.update(found := cls._amounts(clip))
            num_clips.update(found.keys())
        classes = tuple(sorted(amounts))
        if len(classes) < cls.min_classes:
            raise ManifestError(
                f"The train split has {f'only the label {classes[0]!r}' if classes else 'no label'}:"
                f" {cls.name} needs at least {cls.min_classes}. Check the manifest's column"
                f" {TASKS[cls.name].column!r}."
            )
        if rare := [f"{name} ({num_clips[name]})" for name in classes if num_clips[name] < _FEW_CLIPS]:
            log.warning(
                "%d of %d classes have fewer than %d train clips: %s. A model can hardly learn them: add"
                " clips, or join classes.",
                len(rare),
                len(classes),
                _FEW_CLIPS,
                few(rare),
            )
        weights = None
        if config.class_weights == "balanced":
            found = cls._balanced_weights(amounts, clips)
            weights = tuple(found[name] for name in classes)
        elif config.class_weights == "effective_number":
            weights = _effective_number_weights(
                [amounts[name] for name in classes], beta=config.effective_number_beta
            )
        return cls(classes, weights, config.focal_gamma)

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> Self:
        """The inverse of `describe`."""
        lists = {name: tuple(value) for name, value in description.items() if isinstance(value, list | tuple)}
        return cls(**{**description, **lists})

    def describe(self) -> dict[str, Any]:
        """Classes, and the settings of the loss."""
        return asdict(self)

    @property
    def num_outputs(self) -> int:
        """The number of classes, K."""
        return len(self.classes)

    def check(self, clips: Sequence[Clip]) -> None:
        """Raise ManifestError for labels that do not suit the task, or that are not among the classes."""
        self._refuse_unfit(clips)
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

    def labels(self, clip: Clip) -> tuple[str, ...]:
        """The classes that the clip has."""
        return tuple(self._amounts(clip))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits (..., K) and the task's targets: weighted mean of the labelled ones, or 0."""
        losses, weights = self._losses(outputs, targets)
        return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Loss, accuracy and macro F1 of logits (M, K) and class numbers (M,)."""
        rows = np.arange(len(targets))
        answers = outputs.argmax(dim=1).cpu().numpy()
        measured = self._measure(outputs.cpu(), targets.cpu(), rows, answers=answers, ranked=False)
        return measured(np.ones(len(rows)))

    def measure(self, predictions: Predictions) -> Measure:
        """Loss, and the metrics of all clips, or of all labelled frames."""
        return self._measure_predictions(predictions, ranked=True)

    def measure_monitor(self, predictions: Predictions, monitor: str) -> Measure:
        """Like `measure`, without mAP unless it is asked for: it takes ten to a hundred times as long."""
        return self._measure_predictions(predictions, ranked=monitor.startswith("mAP"))

    def _measure_predictions(self, predictions: Predictions, *, ranked: bool) -> Measure:
        rows = predictions.rows(per_frame=self.facts.per_frame)
        return self._measure(*rows, answers=self._answers(predictions), ranked=ranked)

    def _measure(
        self, outputs: Tensor, targets: Tensor, clips: np.ndarray, *, answers: np.ndarray, ranked: bool
    ) -> Measure:
        losses, weights = (values.numpy() for values in self._losses(outputs.double(), targets))
        return measure_together(
            measure_loss(losses * weights, weights, clips=clips),
            measure_classes(outputs, targets, clips=clips, answers=answers, ranked=ranked),
        )

    def _answers(self, predictions: Predictions) -> np.ndarray:
        """The class number (M,) that each row of `Predictions.rows` has for an answer: the likeliest."""
        outputs, _, _ = predictions.rows(per_frame=self.facts.per_frame)
        return outputs.argmax(dim=1).numpy()

    def _losses(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and their weights (M,) of logits (..., K), class numbers (...); both 0: unlabelled."""
        logits, numbers = outputs.reshape(-1, self.num_outputs), targets.reshape(-1)
        weights = (numbers != UNLABELLED).to(logits.dtype)
        if self.class_weights:
            weights *= logits.new_tensor(self.class_weights)[numbers.clamp(min=0)]
        losses = functional.cross_entropy(logits, numbers, ignore_index=UNLABELLED, reduction="none")
        return focal_losses(losses, gamma=self.focal_gamma), weights

    def tabulate(self, predictions: Predictions) -> pa.Table:
        """A row a clip, or a labelled frame with its `frame_seconds`."""
        outputs, targets, clips = predictions.rows(per_frame=self.facts.per_frame)
        labelled = targets != UNLABELLED
        answers = self._answers(predictions)[labelled.numpy()]
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
            answer=classes.take(pa.array(answers)),
            probabilities=self.interpret(outputs),
            classes=self.classes,
            losses=losses,
            loss_weights=weights,
        )

    def mean_answer(self, outputs: Tensor) -> Tensor:
        """As `Task.mean_answer`: the logarithms of the mean probabilities."""
        return outputs.log_softmax(dim=-1).logsumexp(dim=0) - math.log(len(outputs))

    def interpret(self, outputs: Tensor) -> Tensor:
        """Logits (..., K) as probabilities."""
        return outputs.softmax(dim=-1)

    def render(self, output: Tensor, frame_seconds: Tensor, *, num_answers: int = 1) -> Rows:  # noqa: ARG002
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
        return dict.fromkeys(clip.labels, 1.0)

    @classmethod
    def _balanced_weights(cls, amounts: Mapping[str, float], clips: Sequence[Clip]) -> dict[str, float]:  # noqa: ARG003
        """Weights with which all classes count equally."""
        mean = sum(amounts.values()) / len(amounts)
        return {name: mean / amount for name, amount in amounts.items()}

    @classmethod
    def _refuse_missing(cls, clips: Sequence[Clip]) -> None:
        missing = (clip for clip in clips if not cls._amounts(clip))
        refuse_without_target(missing, task=cls.name, target=TASKS[cls.name].column)

    @classmethod
    def _refuse_unfit(cls, clips: Sequence[Clip]) -> None:
        cls._refuse_missing(clips)
        raise_if_any(
            f"Clip {clip.clip_id!r} has several labels, {clip.label}: the task {cls.name!r} takes one a clip."
            " Choose the task 'multilabel', or correct the manifest."
            for clip in clips
            if len(clip.labels) > 1
        )


def focal_losses(losses: Tensor, *, gamma: float) -> Tensor:
    """The focal loss -(1 - p)^gamma log(p) (Lin et al. 2017), from losses -log(p)."""
    if not gamma:
        return losses
    # The slope of the power at 0 may be infinite.
    missing = (-torch.expm1(-losses)).clamp(min=torch.finfo(losses.dtype).tiny)  # 1 - p
    return missing**gamma * losses


def _effective_number_weights(amounts: Sequence[float], *, beta: float) -> tuple[float, ...]:
    """Weights (1 - beta) / (1 - beta^amount) of classes (Cui et al. 2019, eq. 4), whose mean is 1."""
    weights = (1 - beta) / (1 - beta ** np.array(amounts))
    return tuple((weights / weights.mean()).tolist())
