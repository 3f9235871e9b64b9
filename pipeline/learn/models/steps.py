"""Steps: feature maps become standardised steps, at the beginning of every model of a clip."""

import torch
from torch import Tensor, nn

from pipeline.learn.models.frames import check_inputs, place_map
from pipeline.learn.models.tail import Tail
from pipeline.learn.sequences import pool, to_steps
from pipeline.learn.streaming import Standardisation
from pipeline.settings.model import ModelConfig


class Standardise(nn.Module):
    """Subtracts each channel's mean and divides by its standard deviation; both travel with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, standardisation: Standardisation) -> None:
        super().__init__()
        self.register_buffer("mean", standardisation.mean[:, None, None])  # (C, 1, 1)
        self.register_buffer("std", standardisation.std[:, None, None])

    def forward(self, maps: Tensor) -> Tensor:
        """Maps (..., C, H, W) of any float type -> float32."""
        return torch.sub(maps, self.mean).div_(self.std)


class Steps(nn.Module):
    """The beginning of a model of a clip: the tail if there is one, pooling, standardisation, the scan."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        map_shape: tuple[int, int, int],
        standardisation: Standardisation | None = None,
        tail: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.map_shape = map_shape
        self.tail = None if tail is None else Tail(tail)
        with torch.no_grad():
            example = self._pooled(torch.zeros(1, 1, *map_shape))
        channels, height, width = example.shape[2:]
        self.map_size = (height, width)  # of a pooled map
        identity = Standardisation(torch.zeros(channels), torch.ones(channels))
        self.standardise = Standardise(standardisation or identity)
        self.num_features = self._scan(example).shape[3]  # of a step

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps (B, T, C, H, W) and lengths (B,) in frames, on the CPU -> steps of each frame (B, T, S, D).

        Without `lengths` all frames are valid. Raises ShapeError for maps of another shape.
        """
        check_inputs(maps, lengths, map_shape=self.map_shape)
        return self._scan(self.standardise(self._pooled(maps, lengths)))

    def places(self) -> Tensor:
        """Row and column (S, 2) of each step of a frame, where steps are locations; see `place_map`."""
        return self._scan(place_map(*self.map_size))

    def _pooled(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        return pool(maps if self.tail is None else self.tail(maps, lengths), self.config.pooling)

    def _scan(self, maps: Tensor) -> Tensor:
        config = self.config
        return to_steps(maps, scan=config.scan, scan_size=config.scan_size, scan_every=config.scan_every)
