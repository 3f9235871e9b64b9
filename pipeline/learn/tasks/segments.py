"""Segments of frames with the same label: a loss that favours long ones, and answers without short ones."""

import numpy as np
from torch import Tensor

from pipeline.learn.metrics import UNLABELLED


def smoothing_loss(logits: Tensor, targets: Tensor, *, limit: float) -> Tensor:
    """The truncated mean squared change of log-probabilities between consecutive frames, or 0.

    Equations 6 to 8 of Farha and Gall 2019 (arXiv 1903.01945): changes above `limit`, tau, count as `limit`,
    and only the later frame of each pair has a gradient. The mean is over the K classes of all pairs in which
    both frames have a label.

    Args:
        logits: (B, T, K) of each frame.
        targets: (B, T) class numbers, or UNLABELLED.
        limit: the largest change that counts.
    """
    labelled = targets != UNLABELLED
    pairs = labelled[:, 1:] & labelled[:, :-1]  # (B, T - 1)
    likelihoods = logits.log_softmax(dim=-1)
    changes = likelihoods[:, 1:] - likelihoods[:, :-1].detach()  # (B, T - 1, K)
    squares = changes[pairs].square().clamp(max=limit**2)
    return squares.sum() / max(1, squares.numel())


def frame_edges(frame_seconds: Tensor) -> np.ndarray:
    """From times (T,) of frames, in seconds: where each begins, and the last one ends (T + 1,) float64.

    A frame ends where the next one begins; the last one lasts as long as the others on average (a second, if
    there is one frame).
    """
    seconds = frame_seconds.double().numpy()
    mean_duration = (seconds[-1] - seconds[0]) / (len(seconds) - 1) if len(seconds) > 1 else 1.0
    return np.append(seconds, seconds[-1] + mean_duration)


def merge_short_segments(labels: np.ndarray, edges: np.ndarray, *, min_seconds: float) -> np.ndarray:
    """Labels (T,) of frames without segments that are shorter than `min_seconds`.

    Again and again the shortest segment, the first of equal ones, gets the label of the longer of its
    neighbours, the earlier of equal ones, and is one segment with it. A clip's last segment stays, however
    short. `edges` (T + 1,) are those of `frame_edges`.
    """
    firsts = np.flatnonzero(np.append(True, labels[1:] != labels[:-1]))
    kept = labels[firsts]
    while len(firsts) > 1:
        # Rounded, so that times of equal frames differ by nothing.
        seconds = np.diff(edges[np.append(firsts, len(labels))]).round(6)
        shortest = int(seconds.argmin())
        if seconds[shortest] >= min_seconds:
            break
        neighbours = [number for number in (shortest - 1, shortest + 1) if 0 <= number < len(firsts)]
        kept[shortest] = kept[max(neighbours, key=lambda number: seconds[number])]
        begins = np.append(True, kept[1:] != kept[:-1])
        firsts, kept = firsts[begins], kept[begins]
    return np.repeat(kept, np.diff(firsts, append=len(labels)))
