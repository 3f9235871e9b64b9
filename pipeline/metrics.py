"""Metrics: numbers from outputs and targets.

Counted here in plain torch, and compared with torchmetrics in the tests: importing torchmetrics takes
longer than a short training run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassScores:
    """How one class did."""

    num_clips: int
    precision: float  # 0 where the class was never predicted
    recall: float  # 0 where the class has no clips
    f1: float


def class_scores(outputs: Tensor, targets: Tensor) -> list[ClassScores]:
    """One entry a class, from logits (N, K) and class numbers (N,)."""
    counts = _confusion(outputs, targets)
    hits = counts.diagonal().double()
    actual, predicted = counts.sum(dim=1), counts.sum(dim=0)
    precision, recall, f1 = (
        hits / predicted.clamp(min=1),
        hits / actual.clamp(min=1),
        2 * hits / (actual + predicted).clamp(min=1),
    )
    columns = (column.tolist() for column in (precision, recall, f1))
    return [ClassScores(*values) for values in zip(actual.tolist(), *columns, strict=True)]


def classification_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy over clips, and F1 averaged over the classes that occur among targets or answers."""
    counts = _confusion(outputs, targets)
    occurring = (counts.sum(dim=0) + counts.sum(dim=1)).tolist()
    f1s = [score.f1 for score, count in zip(class_scores(outputs, targets), occurring, strict=True) if count]
    return {
        "accuracy": counts.diagonal().sum().item() / len(targets),
        "macro_f1": sum(f1s) / len(f1s),
    }


def _confusion(outputs: Tensor, targets: Tensor) -> Tensor:
    """Numbers of clips (K, K) int64 by actual (row) and predicted class."""
    num_classes = outputs.shape[1]
    pairs = targets * num_classes + outputs.argmax(dim=1)
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
