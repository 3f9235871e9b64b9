"""Steps: feature maps become standardised steps, at the beginning of every model of a clip."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from pipeline.learn.models.encoder import Sequences
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


class ClipSteps:
    """The steps of clips."""

    def __init__(self, values: Tensor, lengths: Tensor | None) -> None:
        self.values = values  # (B, T, S, D): S steps of each frame
        self.lengths = lengths  # (B,) in frames, on the CPU; None: all are valid

    @cached_property
    def sequences(self) -> Sequences:
        """Each clip's steps one after the other, (B, T * S, D)."""
        num_steps = None if self.lengths is None else self.lengths * self.values.shape[2]
        return Sequences(self.values.flatten(1, 2), num_steps)


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
        self._kept: dict[int, ClipSteps] = {}  # by the identity of the maps

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> ClipSteps:
        """The steps of maps (B, T, C, H, W) with lengths (B,) in frames, on the CPU.

        Without `lengths` all frames are valid. Raises ShapeError for maps of another shape.
        """
        if (kept := self._kept.get(id(maps))) is not None:
            return kept
        check_inputs(maps, lengths, map_shape=self.map_shape)
        return ClipSteps(self._scan(self.standardise(self._pooled(maps, lengths))), lengths)

    @contextmanager
    def keeping(self, maps: Tensor, lengths: Tensor | None) -> Iterator[None]:
        """In this block, the steps of these very maps are those that are computed at its beginning.

        Several models, also on threads, then share them. Those of a tail that is trained are not kept.
        """
        if self.tail is None:
            self._kept[id(maps)] = self(maps, lengths)
        try:
            yield
        finally:
            self._kept.pop(id(maps), None)

    def equals(self, other: "Steps") -> bool:
        """Whether both make the same steps of any maps, and learn nothing."""
        return (
            self.tail is other.tail is None
            and self._settings() == other._settings()
            and torch.equal(self.standardise.mean, other.standardise.mean)
            and torch.equal(self.standardise.std, other.standardise.std)
        )

    def _settings(self) -> tuple[object, ...]:
        config = self.config
        return self.map_shape, config.pooling, config.scan, config.scan_size, config.scan_every

    def places(self) -> Tensor:
        """Row and column (S, 2) of each step of a frame, where steps are locations; see `place_map`."""
        return self._scan(place_map(*self.map_size))

    def _pooled(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        return pool(maps if self.tail is None else self.tail(maps, lengths), self.config.pooling)

    def _scan(self, maps: Tensor) -> Tensor:
        config = self.config
        return to_steps(maps, scan=config.scan, scan_size=config.scan_size, scan_every=config.scan_every)


def share_steps(models: Iterable[nn.Module]) -> list[Steps]:
    """Give models that begin alike the same `Steps`; all that there are then."""
    found: list[Steps] = []
    for module in (module for model in models for module in model.modules()):
        steps = getattr(module, "steps", None)
        if isinstance(steps, Steps):
            same = next((other for other in found if other is steps or other.equals(steps)), None)
            if same is None:
                found.append(steps)
            else:
                module.steps = same
    return found
