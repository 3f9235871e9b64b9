"""Metrics: numbers from outputs and targets, computed by torchmetrics."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_stat_scores,
)


def classification_metrics(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    """Accuracy over clips and F1 averaged over classes, of logits (N, K) and class numbers (N,)."""
    num_classes = outputs.shape[1]
    return {
        "accuracy": float(multiclass_accuracy(outputs, targets, num_classes, average="micro")),
        "macro_f1": float(multiclass_f1_score(outputs, targets, num_classes, average="macro")),
    }


@dataclass(frozen=True)
class ClassScores:
    """How one class did."""

    num_clips: int
    precision: float  # 0 where the class was never predicted
    recall: float  # 0 where the class has no clips
    f1: float


def class_scores(outputs: Tensor, targets: Tensor) -> list[ClassScores]:
    """One entry a class, from logits (N, K) and class numbers (N,)."""
    counts = multiclass_stat_scores(outputs, targets, outputs.shape[1], average=None)  # (K, 5)
    true, wrong, _, missed, num_clips = counts.to(torch.float64).unbind(dim=1)
    precision = true / (true + wrong).clamp(min=1)
    recall = true / num_clips.clamp(min=1)
    f1 = 2 * true / (2 * true + wrong + missed).clamp(min=1)
    return [
        ClassScores(int(n), p, r, f)
        for n, p, r, f in zip(
            num_clips.tolist(), precision.tolist(), recall.tolist(), f1.tolist(), strict=True
        )
    ]
