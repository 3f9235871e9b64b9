"""ClipDataset: stored features as a dataset of PyTorch, for training loops other than ours."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.store import FeatureView


class ClipItem(NamedTuple):
    """A clip's features."""

    maps: Tensor  # (T, C, H, W) in the view's dtype
    frame_seconds: Tensor  # (T,) float64: when each frame is shown, from the source's start
    clip_id: str


class ClipDataset(Dataset[ClipItem]):
    """The clips of a view, one an item. Workers of a DataLoader may read it, forked or spawned.

    Clips differ in length: give the DataLoader a `collate_fn`, or `batch_size=None`.
    """

    def __init__(self, view: FeatureView, clip_ids: Sequence[str] | None = None) -> None:
        """`clip_ids` are the items; None: all clips, sorted. Raises MissingClipError."""
        self.clip_ids = tuple(view.clip_ids() if clip_ids is None else clip_ids)
        self._view = view
        for clip_id in self.clip_ids:
            view.num_frames(clip_id)

    def __len__(self) -> int:
        return len(self.clip_ids)

    def __getitem__(self, index: int) -> ClipItem:
        clip_id = self.clip_ids[index]
        seconds = torch.from_numpy(self._view.frame_seconds(clip_id).copy())
        return ClipItem(torch.from_numpy(self._view.read(clip_id)), seconds, clip_id)
