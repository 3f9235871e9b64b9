"""Metrics of several labels a row, each of which is said or not for itself."""

from collections.abc import Sequence

import numpy as np

from pipeline.learn.metrics.intervals import Measure
from pipeline.learn.metrics.numbers import mean_average_precision

_NUM_POINTS = 25  # in time, of each clip, at which Charades measures localisation


def measure_labels(
    probabilities: np.ndarray,
    positive: np.ndarray,
    *,
    thresholds: Sequence[float] | np.ndarray,
    clips: np.ndarray,
    ranked: bool = True,
    per_frame: bool = False,
) -> Measure:
    """Metrics of probabilities (M, K) of K labels, `positive` (M, K) where they are right.

    `clips` (M,) has the number of each row's clip, which rise. A label is said where its probability is at
    least its threshold (K). `micro_f1` counts all rows and labels together; `macro_f1` averages over the
    labels that are right or said somewhere. `mAP`, left out unless `ranked`, averages the average precision
    over the labels that are right somewhere, as AudioSet and Charades do. With `per_frame` there is also
    `mAP_25`: the same of 25 equally spaced frames of each clip, as Charades measures localisation.
    """
    said = probabilities >= np.asarray(thresholds)
    num_clips = int(clips.max()) + 1 if len(clips) else 0

    def per_clip(mask: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(clips, column, num_clips) for column in mask.T], axis=1)  # (N, K)

    num_hits, num_marked = per_clip(said & positive), per_clip(said) + per_clip(positive)
    rankings = {}
    if ranked:
        rankings["mAP"] = (mean_average_precision(probabilities, positive), clips)
        if per_frame:
            rows = _spaced_rows(clips)
            rankings["mAP_25"] = (mean_average_precision(probabilities[rows], positive[rows]), clips[rows])

    def count_labels(counts: np.ndarray) -> dict[str, float]:
        hits, marked = counts[:num_clips] @ num_hits, counts[:num_clips] @ num_marked  # (K,)
        metrics = {name: measure(counts[of]) for name, (measure, of) in rankings.items()}
        occurs = marked > 0
        metrics["micro_f1"] = 2 * hits.sum() / marked.sum() if occurs.any() else np.nan
        metrics["macro_f1"] = (2 * hits[occurs] / marked[occurs]).mean() if occurs.any() else np.nan
        return {name: float(value) for name, value in metrics.items()}

    return count_labels


def best_thresholds(probabilities: np.ndarray, positive: np.ndarray) -> tuple[float, ...]:
    """Of each label the threshold with the highest F1, from rows (M, K); the highest of equally good ones.

    Each is one of the probabilities. A label that is right nowhere has 0.5.
    """
    return tuple(
        _best_threshold(scores, true) if true.any() else 0.5
        for scores, true in zip(probabilities.T, positive.T, strict=True)
    )


def _best_threshold(scores: np.ndarray, true: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    f1 = 2 * true[order].cumsum() / (np.arange(1, len(order) + 1) + true.sum())
    is_end = np.append(ranked[1:] != ranked[:-1], True)  # equal scores are said together
    return float(ranked[np.where(is_end, f1, -1).argmax()])


def _spaced_rows(clips: np.ndarray) -> np.ndarray:
    """The rows of 25 equally spaced frames of each clip, the first of which is its first frame.

    In a clip of fewer frames some of them are there more than once.
    """
    _, firsts, lengths = np.unique(clips, return_index=True, return_counts=True)
    rows: np.ndarray = firsts[:, None] + np.arange(_NUM_POINTS) * lengths[:, None] // _NUM_POINTS
    return rows.ravel()
