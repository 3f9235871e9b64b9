"""Tasks: what is asked of a clip. Targets from the manifest, loss, metrics, and which epoch is best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.errors import ManifestError
from pipeline.manifest import Clip
from pipeline.metrics import classification_metrics


@dataclass(frozen=True)
class Classification:
    """One class a clip, from the manifest's column `label`."""

    classes: tuple[str, ...]

    @classmethod
    def from_clips(cls, clips: Sequence[Clip]) -> Self:
        """The classes are the labels of the train split's clips, sorted."""
        classes = tuple(sorted({_label(clip) for clip in clips}))
        if len(classes) < 2:
            raise ManifestError(
                f"The train split has only the label {', '.join(map(repr, classes))}: classification needs "
                "at least two. Check the manifest's column 'label'."
            )
        return cls(classes)

    @property
    def num_outputs(self) -> int:
        return len(self.classes)

    def targets(self, clips: Sequence[Clip]) -> Tensor:
        """Class numbers (B,) int64. Raises ManifestError for a label that the train split does not have."""
        numbers = {name: number for number, name in enumerate(self.classes)}
        for clip in clips:
            if _label(clip) not in numbers:
                raise ManifestError(
                    f"Clip {clip.clip_id!r} has label {clip.label!r}, which the train split does not have. "
                    f"Known: {', '.join(self.classes)}."
                )
        return torch.tensor([numbers[_label(clip)] for clip in clips])

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, mean over clips, of logits (B, K) and class numbers (B,)."""
        return functional.cross_entropy(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Loss, accuracy and macro F1 of logits (N, K) and class numbers (N,)."""
        return {"loss": float(self.loss(outputs, targets)), **classification_metrics(outputs, targets)}

    def score(self, metrics: dict[str, float]) -> tuple[float, ...]:
        """Larger is better: accuracy, and the loss among equals."""
        return metrics["accuracy"], -metrics["loss"]


TASKS = {"classification": Classification}


def _label(clip: Clip) -> str:
    if clip.label is None:
        raise ManifestError(
            f"Clip {clip.clip_id!r} has no label: the task 'classification' needs one for every clip. "
            "Fill the manifest's column 'label', or choose another train.task."
        )
    return clip.label
