"""The fine-tuned tail: the last layers of the network, trained on cached maps of an earlier tap."""

import copy
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.contract import FeatureContract
from pipeline.learn.models.frames import map_frames
from pipeline.learn.streaming import Features


class Tail(nn.Module):
    """Layers that are applied to every valid frame.

    They stay in eval mode while the model around them trains: their weights train, but BatchNorm keeps the
    statistics of its own training, which batches of a few similar frames would spoil.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module alone; its layers stay in eval mode."""
        super().train(mode)
        self.layers.eval()
        return self

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps (B, T, C, H, W) of any float type -> (B, T, C', H', W') float32, zeros after each length.

        `lengths` (B,), on the CPU, are frames; without it all T are valid.
        """
        return map_frames(lambda frames: self.layers(frames.float()), maps, lengths)


class TailFeatures:
    """The outputs of `layers` for cached features, computed when they are read.

    A model with this tail standardises them, by statistics that are measured here.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, features: Features, layers: nn.Module, *, device: torch.device) -> None:
        self._features = features
        self._layers = copy.deepcopy(layers).to(device).eval()
        self._device = device
        self.path: Path = features.path
        self.contract: FeatureContract = features.contract
        channels, height, width = self._apply(torch.zeros(1, *features.map_shape)).shape[1:]
        self.map_shape = (channels, height, width)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._features

    def num_frames(self, clip_id: str) -> int:
        """Frames of the clip."""
        return self._features.num_frames(clip_id)

    def frame_seconds(self, clip_id: str) -> np.ndarray:
        """Time (T,) float64 of each frame, from the source's start."""
        return self._features.frame_seconds(clip_id)

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:
        """Write outputs from `first_frame` on into `out` (T, C', H', W') float32, as many as it holds."""
        maps = np.empty((len(out), *self._features.map_shape), self._features.dtype)
        self._features.read_into(clip_id, maps, first_frame=first_frame)
        out[:] = self._apply(torch.from_numpy(maps)).cpu().numpy()

    @torch.inference_mode()
    def _apply(self, maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) -> (N, C', H', W')."""
        outputs: Tensor = self._layers(maps.to(self._device).float())
        return outputs
