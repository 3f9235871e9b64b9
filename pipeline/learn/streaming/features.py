"""Features to train on: a view of the store, or clips held in memory, on the CPU or on a GPU."""

import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.contract import FeatureContract
from pipeline.errors import NonFiniteError, few
from pipeline.manifest import Clip

log = logging.getLogger(__name__)


CPU = torch.device("cpu")

_CHECKED_BYTES = 1 << 20  # at once: what a CPU's cache holds


class Features(Protocol):
    """What training needs of cached features."""

    @property
    def path(self) -> Path: ...
    @property
    def contract(self) -> FeatureContract: ...
    @property
    def map_shape(self) -> tuple[int, int, int]: ...  # (C, H, W)
    @property
    def dtype(self) -> np.dtype[Any]: ...
    def __contains__(self, clip_id: str) -> bool: ...
    def num_frames(self, clip_id: str) -> int: ...
    def frame_seconds(self, clip_id: str) -> np.ndarray: ...  # (T,) float64, from the source's start
    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None: ...


@dataclass(frozen=True)
class ResidentFeatures:
    """Features of some clips held in one tensor."""

    path: Path
    contract: FeatureContract
    rows: Tensor  # (N, C, H, W)
    seconds: np.ndarray  # (N,) float64: when each row's frame is shown
    spans: dict[str, tuple[int, int]]  # clip_id -> first row, number of rows

    @property
    def map_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.rows.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = self.rows[:0].cpu().numpy().dtype
        return dtype

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self.spans

    def num_frames(self, clip_id: str) -> int:
        return self.spans[clip_id][1]

    def frame_seconds(self, clip_id: str) -> np.ndarray:
        first, count = self.spans[clip_id]
        return self.seconds[first : first + count]

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:
        """Copy frames into `out` (T, C, H, W); as many as it has room for."""
        first = self.spans[clip_id][0] + first_frame
        out[:] = self.rows[first : first + len(out)].cpu().numpy()

    @cached_property
    def non_finite_clips(self) -> tuple[str, ...]:
        """The clips with values that are infinite or NaN; looked for once."""
        num_rows = max(1, _CHECKED_BYTES // max(1, self.rows[:1].nbytes))
        if all(map(is_finite, torch.split(self.rows, num_rows))):
            return ()
        spans = self.spans.items()
        return tuple(name for name, (first, n) in spans if not is_finite(self.rows[first : first + n]))


def keep_resident(
    features: Features,
    clips: Sequence[Clip],
    *,
    limit_bytes: int,
    device: torch.device = CPU,
    device_limit_bytes: int | None = None,
    num_threads: int = 2,
) -> Features:
    """The clips' features, read once and kept as near to `device` as there is room for them.

    On a GPU, if they take at most `device_limit_bytes` (None: half of what is free there); else in memory,
    if they take at most `limit_bytes`; else they stay in the store.
    """
    counts = [features.num_frames(clip.clip_id) for clip in clips]
    size_bytes = sum(counts) * math.prod(features.map_shape) * features.dtype.itemsize
    if device.type == "cuda":
        if device_limit_bytes is None:
            device_limit_bytes = torch.cuda.mem_get_info(device)[0] // 2
        if size_bytes <= device_limit_bytes:
            log.info("Features take %d MB: kept on the GPU.", size_bytes >> 20)
            return _load(features, clips, counts, device=device, num_threads=num_threads)
    if size_bytes <= limit_bytes:
        log.info("Features take %d MB: kept in memory.", size_bytes >> 20)
        return _load(features, clips, counts, device=CPU, num_threads=num_threads)
    log.info("Features take %d MB: streamed from the store in every epoch.", size_bytes >> 20)
    return features


def _load(
    features: Features, clips: Sequence[Clip], counts: list[int], *, device: torch.device, num_threads: int
) -> ResidentFeatures:
    firsts = np.cumsum([0, *counts]).tolist()
    dtype = torch.from_numpy(np.empty(0, features.dtype)).dtype
    rows = torch.empty((firsts[-1], *features.map_shape), dtype=dtype, device=device)  # (N, C, H, W)
    spans = {clip.clip_id: span for clip, span in zip(clips, zip(firsts, counts, strict=False), strict=True)}

    def read(clip: Clip) -> None:
        first, count = spans[clip.clip_id]
        part = rows[first : first + count]
        host = part if device.type == "cpu" else torch.empty_like(part, device="cpu")
        features.read_into(clip.clip_id, host.numpy())
        if host is not part:
            part.copy_(host)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="resident") as pool:
        for _ in pool.map(read, clips):
            pass
    seconds = np.concatenate([np.empty(0), *(features.frame_seconds(clip.clip_id) for clip in clips)])
    return ResidentFeatures(features.path, features.contract, rows, seconds, spans)


def is_finite(values: Tensor) -> bool:
    """Whether no value is infinite or NaN. On a CPU no thread of torch is needed."""
    if values.device.type != "cpu":
        return bool(torch.stack(torch.aminmax(values)).isfinite().all())
    array: np.ndarray = values.numpy()
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    # Whether all bits of an exponent are set: NumPy's isfinite takes six times as long for float16.
    exponents: np.ndarray = np.bitwise_and(array.view(np.uint16), 0x7C00)
    return bool(exponents.max(initial=0) < 0x7C00)


def refuse_non_finite(clip_ids: Sequence[str], *, path: Path) -> None:
    """Raise NonFiniteError, if there are any, for clips whose features at `path` are not finite."""
    if clip_ids:
        raise NonFiniteError(
            f"{path}: the features of {few(clip_ids)} have values that are infinite or NaN. Extract them"
            " again (with extract.dtype: float32 if it is float16), or take these clips out of the manifest."
        )


def with_features(clips: Sequence[Clip], features: Features) -> list[Clip]:
    """The clips that have features; the others (quarantined at extraction) are named in a warning."""
    found = [clip for clip in clips if clip.clip_id in features]
    if missing := [clip.clip_id for clip in clips if clip.clip_id not in features]:
        left_out = few(missing)
        log.warning(
            "%d of %d clips have no features and are left out: %s", len(missing), len(clips), left_out
        )
    return found
