"""The second lane: frames of any clips packed into batches of one fixed size, and their maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.backbone import Backbone, preprocess
from pipeline.contract import FeatureContract, Preprocessing
from pipeline.errors import DecodeError
from pipeline.extract.config import Target
from pipeline.extract.plan import PlannedClip
from pipeline.frames import FrameBatch


@dataclass(frozen=True)
class Segment:
    """Consecutive frames of one clip inside a batch; `rows` by tap are added after the forward pass."""

    clip: PlannedClip
    frame_seconds: np.ndarray[Any, Any]


@dataclass(frozen=True)
class ClipEnd:
    clip: PlannedClip
    error: Exception | None


Written = tuple[Segment, dict[str, np.ndarray[Any, Any]]] | ClipEnd


class Compute:
    """Packs frames of any clips into batches of one fixed size and runs the network on them.

    The last batch is padded: a network sees one shape, and a clip's features are the same bits
    whatever its neighbours are.
    """

    def __init__(
        self, backbone: Backbone, targets: Sequence[Target], *, batch_size: int, preprocessing: Preprocessing
    ) -> None:
        self._backbone = backbone
        self._targets = targets
        self._preprocessing = preprocessing
        height, width = preprocessing.crop_size
        self._batch = torch.zeros((batch_size, 3, height, width), dtype=torch.uint8)
        self._used = 0
        self._waiting: list[Segment | ClipEnd] = []
        self._done: list[Written] = []
        self._failed: set[bytes] = set()
        self.num_batches = 0

    def add(self, clip: PlannedClip, frames: FrameBatch) -> None:
        if clip.key in self._failed:
            return
        try:
            pixels = preprocess(frames.pixels, self._preprocessing)  # (T, 3, H, W) uint8
        except DecodeError as error:
            self._failed.add(clip.key)
            self._waiting.append(ClipEnd(clip, error))
            return
        seconds = frames.pts_seconds
        while len(pixels):
            count = min(len(pixels), len(self._batch) - self._used)
            self._batch[self._used : self._used + count] = pixels[:count]
            self._waiting.append(Segment(clip, seconds[:count]))
            self._used += count
            pixels, seconds = pixels[count:], seconds[count:]
            if self._used == len(self._batch):
                self.flush()

    def end(self, end: ClipEnd) -> None:
        if end.clip.key not in self._failed:
            self._waiting.append(end)
        if not self._used:
            self.flush()

    def flush(self) -> None:
        """Compute what is waiting, padded to a full batch."""
        rows: dict[str, np.ndarray[Any, Any]] = {}
        if self._used:
            self._batch[self._used :] = 0
            maps = self._backbone(self._batch)
            rows = {t.contract.tap: _stored(maps[t.contract.tap], t.contract) for t in self._targets}
            self.num_batches += 1
        start = 0
        for item in self._waiting:
            if isinstance(item, ClipEnd):
                self._done.append(item)
            else:
                stop = start + len(item.frame_seconds)
                taps = {tap: values[start:stop] for tap, values in rows.items() if tap in item.clip.taps}
                self._done.append((item, taps))
                start = stop
        self._waiting.clear()
        self._used = 0

    def ready(self) -> list[Written]:
        done, self._done = self._done, []
        return done


def _stored(maps: torch.Tensor, contract: FeatureContract) -> np.ndarray[Any, Any]:
    """(B, C, H, W) float32 -> as stored: pooled, cast, contiguous, on the host."""
    if contract.pooling == "avg":
        maps = maps.mean(dim=(2, 3), keepdim=True)
    elif contract.pooling == "max":
        maps = maps.amax(dim=(2, 3), keepdim=True)
    dtype = getattr(torch, contract.dtype)
    array: np.ndarray[Any, Any] = maps.to(dtype).contiguous().cpu().numpy()
    return array
