"""Features to train on: those of a store, or of clips held in memory, on the CPU or on a GPU."""

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
from pipeline.errors import NonFiniteFeaturesError, few
from pipeline.manifest import Clip

log = logging.getLogger(__name__)


CPU = torch.device("cpu")

_CHECKED_BYTES = 1 << 20  # at once: they fit into a CPU's cache


class Features(Protocol):
    """Cached features of clips, as training reads them."""

    @property
    def path(self) -> Path:
        """Where they are stored, for messages."""
        ...

    @property
    def contract(self) -> FeatureContract:
        """How they were made."""
        ...

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a frame's map."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        ...

    def __contains__(self, clip_id: str) -> bool:
        """Whether the clip has features."""
        ...

    def num_frames(self, clip_id: str) -> int:
        """Frames of the clip."""
        ...

    def frame_seconds(self, clip_id: str) -> np.ndarray:
        """Time (T,) float64 of each frame, from the source's start."""
        ...

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:
        """Copy maps from `first_frame` on into `out` (T, C, H, W), as many as it holds."""
        ...


@dataclass(frozen=True)
class ResidentFeatures:
    """Features of clips, held in one tensor, which other views of these clips may share; see `Features`."""

    path: Path
    contract: FeatureContract
    rows: Tensor  # (N, C, H, W)
    row_frame_seconds: np.ndarray  # (N,) float64: time of each row's frame in its source
    spans: dict[str, tuple[int, int]]  # clip_id -> first row, number of rows

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a frame's map."""
        channels, height, width = self.rows.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the rows, in NumPy."""
        dtype: np.dtype[Any] = self.rows[:0].cpu().numpy().dtype
        return dtype

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self.spans

    def num_frames(self, clip_id: str) -> int:
        """Frames of the clip."""
        return self.spans[clip_id][1]

    def frame_seconds(self, clip_id: str) -> np.ndarray:
        """Time (T,) float64 of each frame, from the source's start."""
        first, count = self.spans[clip_id]
        return self.row_frame_seconds[first : first + count]

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:
        """Copy maps from `first_frame` on into `out` (T, C, H, W), as many as it holds."""
        first = self.spans[clip_id][0] + first_frame
        out[:] = self.rows[first : first + len(out)].cpu().numpy()

    @cached_property
    def non_finite_clips(self) -> tuple[str, ...]:
        """The clips with values that are infinite or NaN; found once."""
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
    """As `keep_all_resident`, of a single view."""
    (kept,) = keep_all_resident(
        [(features, clips)],
        limit_bytes=limit_bytes,
        device=device,
        device_limit_bytes=device_limit_bytes,
        num_threads=num_threads,
    )
    return kept


def keep_all_resident(
    parts: Sequence[tuple[Features, Sequence[Clip]]],
    *,
    limit_bytes: int,
    device: torch.device = CPU,
    device_limit_bytes: int | None = None,
    num_threads: int = 2,
) -> list[Features]:
    """Read the features of some clips of each view once, and keep them as near to `device` as there is room.

    They are kept on a GPU if they take at most `device_limit_bytes` (None: half of its free memory); else in
    memory if they take at most `limit_bytes`; else they stay in the store. All parts share one tensor.
    """
    num_rows = sum(features.num_frames(clip.clip_id) for features, clips in parts for clip in clips)
    first, _ = parts[0]
    size_bytes = num_rows * math.prod(first.map_shape) * first.dtype.itemsize
    if device.type == "cuda":
        if device_limit_bytes is None:
            device_limit_bytes = torch.cuda.mem_get_info(device)[0] // 2
        if size_bytes <= device_limit_bytes:
            log.info("Features take %d MB: kept on the GPU.", size_bytes >> 20)
            return _load(parts, num_rows, device=device, num_threads=num_threads)
    if size_bytes <= limit_bytes:
        log.info("Features take %d MB: kept in memory.", size_bytes >> 20)
        return _load(parts, num_rows, device=CPU, num_threads=num_threads)
    log.info("Features take %d MB: streamed from the store in every epoch.", size_bytes >> 20)
    return [features for features, _ in parts]


def _load(
    parts: Sequence[tuple[Features, Sequence[Clip]]],
    num_rows: int,
    *,
    device: torch.device,
    num_threads: int,
) -> list[Features]:
    first, _ = parts[0]
    dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
    rows = torch.empty((num_rows, *first.map_shape), dtype=dtype, device=device)  # (N, C, H, W)
    frame_seconds = np.empty(num_rows)
    kept: list[Features] = []
    reads: list[tuple[Features, str, slice]] = []
    end = 0
    for features, clips in parts:
        spans = {}
        for clip in clips:
            start, count = end, features.num_frames(clip.clip_id)
            end += count
            spans[clip.clip_id] = (start, count)
            frame_seconds[start:end] = features.frame_seconds(clip.clip_id)
            reads.append((features, clip.clip_id, slice(start, end)))
        kept.append(ResidentFeatures(features.path, features.contract, rows, frame_seconds, spans))

    def read(features: Features, clip_id: str, span: slice) -> None:
        part = rows[span]
        host = part if device.type == "cpu" else torch.empty_like(part, device="cpu")
        features.read_into(clip_id, host.numpy())
        if host is not part:
            part.copy_(host)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="resident") as pool:
        for _ in pool.map(read, *zip(*reads, strict=True)):
            pass
    return kept


def is_finite(values: Tensor) -> bool:
    """Whether no value of a tensor of any shape is infinite or NaN. On a CPU it starts no thread."""
    if values.device.type != "cpu":
        return bool(torch.stack(torch.aminmax(values)).isfinite().all())
    array: np.ndarray = values.numpy()
    if array.dtype != np.float16:
        return bool(np.isfinite(array).all())
    # All bits of the exponent are set where a value is not finite. NumPy's isfinite takes six times as long.
    exponents: np.ndarray = np.bitwise_and(array.view(np.uint16), 0x7C00)
    return bool(exponents.max(initial=0) < 0x7C00)


def refuse_non_finite(clip_ids: Sequence[str], *, path: Path) -> None:
    """Raise NonFiniteFeaturesError for these clips, if there are any: their features are not finite."""
    if clip_ids:
        raise NonFiniteFeaturesError(
            f"{path}: the features of {few(clip_ids)} have values that are infinite or NaN."
        )


def with_features(clips: Sequence[Clip], features: Features) -> list[Clip]:
    """The clips that have features; a warning names the others, which extraction has left out."""
    found = [clip for clip in clips if clip.clip_id in features]
    if missing := [clip.clip_id for clip in clips if clip.clip_id not in features]:
        left_out = few(missing)
        log.warning(
            "%d of %d clips have no features and are left out: %s", len(missing), len(clips), left_out
        )
    return found
