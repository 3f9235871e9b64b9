"""SpooledFeatures: the features of one clip, in memory while they are few, and then in a temporary file."""

from pathlib import Path
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from pipeline.contract import FeatureContract

MEMORY_BYTES = 256 << 20  # of a clip; what is larger goes to the folder for temporary files


class SpooledFeatures:
    """Features of one clip that are appended, and then read; see `Features`.

    Use it in a `with` statement, whose end deletes the file. Threads may read it at once.
    """

    def __init__(
        self, clip_id: str, *, path: Path, contract: FeatureContract, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        """`path` is the clip's source, for messages."""
        self.path = path
        self.contract = contract
        self._clip_id = clip_id
        self._file = SpooledTemporaryFile(max_size=memory_bytes)  # noqa: SIM115 - `__exit__` closes it
        self._lock = Lock()
        self._maps = torch.empty(0)  # (0, C, H, W): their shape and type
        self._seconds: list[np.ndarray] = []

    def append(self, maps: Tensor, frame_seconds: np.ndarray) -> None:
        """Add frames: maps (N, C, H, W) on the CPU, and their times (N,) float64 in seconds."""
        self._maps = maps[:0]
        self._seconds.append(frame_seconds)
        self._file.write(np.ascontiguousarray(maps.numpy()).data)

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a frame's map."""
        channels, height, width = self._maps.shape[1:]
        return channels, height, width

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of the maps, in NumPy."""
        dtype: np.dtype[Any] = self._maps.numpy().dtype
        return dtype

    def __contains__(self, clip_id: str) -> bool:
        return clip_id == self._clip_id

    def num_frames(self, clip_id: str) -> int:
        """Frames of the clip."""
        return len(self.frame_seconds(clip_id))

    def frame_seconds(self, clip_id: str) -> np.ndarray:  # noqa: ARG002
        """Time (T,) float64 of each frame, from the source's start."""
        self._seconds = [np.concatenate(self._seconds)]
        return self._seconds[0]

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:  # noqa: ARG002
        """Copy maps from `first_frame` on into `out` (T, C, H, W), contiguous, as many as it holds."""
        with self._lock:
            self._file.seek(first_frame * out[:1].nbytes)
            self._file.readinto(out.reshape(-1).view(np.uint8).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
