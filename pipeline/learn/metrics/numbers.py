"""Metrics: numbers from outputs and targets.

Each metric is a function of how often every clip counts. One definition then gives the value, for which each
clip counts once, and the interval, for which clips are drawn with replacement (intervals.py). Metrics are
written in numpy and compared with torchmetrics in the tests: torchmetrics has no such counts, and takes ten
times as long for a draw of the size of UCF101's test split (157 ms instead of 15).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.learn.metrics.intervals import Measure

UNLABELLED = -100  # the target of a frame that has no label

_NUM_BINS = 15  # of confidence, in the calibration error


def json_numbers(metrics: Mapping[str, float | None]) -> dict[str, float | None]:
    """Metrics for JSON, which has neither NaN nor infinity: None stands for them."""
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in metrics.items()
    }


def measure_together(*measures: Measure) -> Measure:
    """All metrics of several measures."""
    return lambda counts: {name: value for measure in measures for name, value in measure(counts).items()}


def measure_loss(losses: np.ndarray, weights: np.ndarray, *, clips: np.ndarray | None = None) -> Measure:
    """`loss`: the sum of losses (M,) divided by the sum of weights (M,); 0 where all weights are 0.

    `clips` (M,) has the number of each row's clip; without it each row is a clip.
    """
    clips = np.arange(len(losses)) if clips is None else clips

    def count_loss(counts: np.ndarray) -> dict[str, float]:
        total = float((counts[clips] * weights).sum())
        return {"loss": float((counts[clips] * losses).sum()) / total if total else 0.0}

    return count_loss


def measure_classes(
    outputs: Tensor,
    targets: Tensor,
    *,
    clips: np.ndarray | None = None,
    ranked: bool = True,
    answers: np.ndarray | None = None,
) -> Measure:
    """Metrics of logits (M, K) and class numbers (M,), which may be UNLABELLED.

    `clips` (M,) has the number of each row's clip; without it each row is a clip. `answers` (M,) are the
    classes that are said, by default the likeliest. `accuracy` is over rows;
    with more than five classes there is `accuracy_top5`. `macro_f1` averages over the classes that occur
    among targets or answers. `ece` is the expected calibration error (Guo et al. 2017) of the likeliest
    class: the mean difference of its accuracy and confidence over 15 equal bins of confidence, each
    weighted by its rows. `mAP`, left out unless `ranked`, averages the average precision
    over the classes that occur among targets.
    """
    labelled = (targets != UNLABELLED).numpy()
    clips = (np.arange(len(targets)) if clips is None else clips)[labelled]
    logits, actual = outputs.double().numpy()[labelled], targets.numpy()[labelled]
    num_classes = logits.shape[1]
    predicted = logits.argmax(axis=1) if answers is None else answers[labelled]
    hits = predicted == actual
    top5_hits = (np.argsort(-logits, axis=1, kind="stable")[:, :5] == actual[:, None]).any(axis=1)
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()  # comparable between rows
    confidence, is_right = (
        probabilities.max(axis=1),
        logits.argmax(axis=1) == actual,
    )  # of the likeliest class
    bins = np.ceil(confidence * _NUM_BINS).astype(int)  # 1 to 15; the upper end belongs to a bin
    average_precision = (
        mean_average_precision(probabilities, actual[:, None] == np.arange(num_classes)) if ranked else None
    )

    def count_classes(counts: np.ndarray) -> dict[str, float]:
        weights = counts[clips]  # (M,)
        if not weights.any():
            return dict.fromkeys(names, np.nan)

        def per_class(classes: np.ndarray, weights: np.ndarray) -> np.ndarray:
            return np.bincount(classes, weights, minlength=num_classes)

        occurring = per_class(actual, weights) + per_class(predicted, weights)
        f1 = 2 * per_class(actual, weights * hits) / np.maximum(occurring, 1)
        metrics = {"accuracy": np.average(hits, weights=weights)}
        if num_classes > 5:
            metrics["accuracy_top5"] = np.average(top5_hits, weights=weights)
        metrics["macro_f1"] = f1[occurring > 0].mean()
        metrics["ece"] = np.abs(np.bincount(bins, weights * (is_right - confidence))).sum() / weights.sum()
        if average_precision:
            metrics["mAP"] = average_precision(weights)
        return {name: float(value) for name, value in metrics.items()}

    names = ["accuracy", *["accuracy_top5"] * (num_classes > 5), "macro_f1", "ece", *["mAP"] * ranked]
    return count_classes


def mean_average_precision(scores: np.ndarray, positive: np.ndarray) -> Callable[[np.ndarray], float]:
    """From how often rows count (M,): the mean over classes of sum((recall - last recall) * precision).

    `positive` (M, K) says where the classes are right, and `scores` (M, K) how likely they are for the model:
    equal ones are one step of the curve. A class that is right nowhere does not count; NaN where none is.
    """
    occurring = positive.any(axis=0)
    if not occurring.any():
        return lambda _: math.nan
    scores, positive = scores.T[occurring], positive.T[occurring]  # (K, M)
    order = np.argsort(-scores, axis=1, kind="stable")  # the rows of each class by falling score
    ranked = np.take_along_axis(scores, order, axis=1)
    num_classes, num_rows = order.shape
    is_end = np.hstack([ranked[:, 1:] != ranked[:, :-1], np.ones((num_classes, 1), dtype=bool)])
    (steps,) = is_end.ravel().nonzero()  # where the curves have their points, among all places
    (right,) = np.take_along_axis(positive, order, axis=1).ravel().nonzero()  # (P,) places of right rows
    rows = order.ravel()[right]
    ends = steps[np.searchsorted(steps, right)]  # (P,) the last place of the same class and score
    last = np.searchsorted(right, ends, side="right") - 1  # (P,) the last right row up to there
    classes = right // num_rows
    firsts = np.searchsorted(classes, np.arange(num_classes))  # (K,) the first right row of each class

    def mean_over_classes(weights: np.ndarray) -> float:
        true = weights[rows]
        num_true = np.add.reduceat(true, firsts)  # (K,)
        if not num_true.any():
            return math.nan
        found = true.cumsum()[last] - (num_true.cumsum() - num_true)[classes]
        said = weights[order].cumsum(axis=1).ravel()[ends]
        sums = np.add.reduceat(true * found / np.maximum(said, 1), firsts)
        return float((sums / np.maximum(num_true, 1))[num_true > 0].mean())

    return mean_over_classes


def measure_values(outputs: Tensor, targets: Tensor) -> Measure:
    """Metrics of predicted and true numbers (N, V) of N clips, in their unit.

    `mae`, `rmse` and `r2` (0 where the targets do not differ) are means over the V values. If V is above 1,
    each value also has its own: `mae_1`, ..., `mae_V`.
    """
    actual = targets.double().numpy()
    errors = outputs.double().numpy() - actual

    def count_values(counts: np.ndarray) -> dict[str, float]:
        def average(values: np.ndarray) -> np.ndarray:
            return np.average(values, axis=0, weights=counts)  # (V,)

        variance = average((actual - average(actual)) ** 2)
        squared = average(errors**2)
        differs = variance > 1e-18 * average(actual**2)  # rounding of equal targets leaves less
        explained = np.where(differs, 1 - squared / np.where(differs, variance, 1), 0.0)
        columns = {"mae": average(np.abs(errors)), "rmse": np.sqrt(squared), "r2": explained}
        metrics = {name: float(column.mean()) for name, column in columns.items()}
        if actual.shape[1] > 1:
            metrics |= {
                f"{name}_{number}": float(value)
                for name, column in columns.items()
                for number, value in enumerate(column, start=1)
            }
        return metrics

    return count_values


@dataclass(frozen=True)
class ClassScores:
    """Precision and recall of one class."""

    num_rows: int  # clips, or labelled frames
    precision: float  # 0 where the class was never predicted
    recall: float  # 0 where the class does not occur
    f1: float


def class_scores(predicted: np.ndarray, actual: np.ndarray) -> list[ClassScores]:
    """Scores of each class, from (M, K) bool: where rows have it."""
    num_actual, num_predicted, num_hits = (
        marks.sum(axis=0) for marks in (actual, predicted, actual & predicted)
    )
    precision, recall = num_hits / np.maximum(num_predicted, 1), num_hits / np.maximum(num_actual, 1)
    f1 = 2 * num_hits / np.maximum(num_actual + num_predicted, 1)
    columns = (column.tolist() for column in (num_actual, precision, recall, f1))
    return [ClassScores(*values) for values in zip(*columns, strict=True)]
