"""Channel statistics: mean and standard deviation of the train split, for standardisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pipeline.learn.sequences import pool
from pipeline.learn.streaming.features import Features, is_finite, refuse_non_finite
from pipeline.manifest import Clip

_CLIPS_PER_TASK = 16
_PIECE_BYTES = 8 << 20  # read at once by a task: a long clip does not fit into memory


@dataclass(frozen=True)
class Standardisation:
    """Mean and standard deviation of each channel."""

    mean: Tensor  # (C,) float32
    std: Tensor  # (C,) float32; 1 where a channel is constant


def channel_statistics(
    features: Features, clips: Sequence[Clip], *, pooling: str = "flatten", num_threads: int = 2
) -> Standardisation:
    """Mean and deviation of each channel over all frames and locations of the clips' pooled maps, in float64.

    Give it the train split only. Dask runs the tasks on threads; their sums are added in the clips' order, so
    that the result does not depend on the number of threads.

    Raises NonFiniteFeaturesError, with the clip, for features that are infinite or NaN.
    """
    from dask.base import compute  # imported here: half a second that only training needs
    from dask.delayed import delayed
    from dask.threaded import get  # by its name, "threads", dask would import distributed too

    tasks = [
        delayed(partial(_sums, features, clips[start : start + _CLIPS_PER_TASK], pooling), pure=False)()
        for start in range(0, len(clips), _CLIPS_PER_TASK)
    ]
    parts = compute(*tasks, scheduler=get, num_workers=num_threads)  # type: ignore[no-untyped-call]
    total, total_squares = np.sum(parts, axis=0)  # (C,) each
    num_locations = pool(torch.zeros(features.map_shape), pooling)[0].numel()
    num_values = sum(features.num_frames(clip.clip_id) for clip in clips) * num_locations
    mean = total / num_values
    variance = np.maximum(total_squares / num_values - mean**2, 0)
    std = np.where(variance > 1e-12 * (mean**2 + 1e-12), np.sqrt(variance), 1.0)
    return Standardisation(torch.from_numpy(mean).float(), torch.from_numpy(std).float())


def _sums(features: Features, clips: Sequence[Clip], pooling: str) -> np.ndarray:
    """Each channel's sum of values and of squares (2, C) float64."""
    sums = np.zeros((2, features.map_shape[0]))
    row_bytes = int(np.prod(features.map_shape)) * features.dtype.itemsize
    piece = np.empty((max(1, _PIECE_BYTES // row_bytes), *features.map_shape), features.dtype)
    for clip in clips:
        num_frames = features.num_frames(clip.clip_id)
        for first in range(0, num_frames, len(piece)):
            rows = piece[: num_frames - first]  # (T, C, H, W)
            features.read_into(clip.clip_id, rows, first_frame=first)
            if not is_finite(torch.from_numpy(rows)):
                refuse_non_finite([clip.clip_id], path=features.path)
            values = pool(torch.from_numpy(rows).double(), pooling).numpy()
            sums[0] += values.sum(axis=(0, 2, 3))
            sums[1] += np.einsum("tchw,tchw->c", values, values)
    return sums
