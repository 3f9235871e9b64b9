"""Steps: feature maps become standardised steps, at the beginning of every model of a clip."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.learn.models.encoder import Sequences
from pipeline.learn.models.frames import check_inputs, place_map
from pipeline.learn.models.tail import Tail
from pipeline.learn.sequences import pool, to_steps
from pipeline.learn.streaming import MapShape, Place, Standardisation
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


class Steps(nn.Module, ABC):
    """The beginning of a model of a clip: from maps to steps. Models that begin alike share it."""

    map_shape: MapShape
    map_size: tuple[int, int]  # (H, W) of a pooled map
    num_features: int  # of a step
    learns = False  # it has weights that are trained

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[int, ClipSteps] = {}  # by the identity of the maps

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> ClipSteps:
        """The steps of maps (B, T, C, H, W) with lengths (B,) in frames, on the CPU.

        Without `lengths` all frames are valid. Raises ShapeError for maps of another shape.
        """
        if (kept := self._kept.get(id(maps))) is not None:
            return kept
        check_inputs(maps, lengths, map_shape=self.map_shape)
        return ClipSteps(self.read(maps, lengths), lengths)

    @contextmanager
    def keeping(self, maps: Tensor, lengths: Tensor | None) -> Iterator[None]:
        """In this block, the steps of these very maps are those that are computed at its beginning.

        Several models, also on threads, then share them. Those of a tail that is trained are not kept.
        """
        if not self.learns:
            self._kept[id(maps)] = self(maps, lengths)
        try:
            yield
        finally:
            self._kept.pop(id(maps), None)

    @abstractmethod
    def read(self, maps: Tensor, lengths: Tensor | None) -> Tensor:
        """Maps and lengths as in `forward` -> the values (B, T, S, D) of the steps."""

    @abstractmethod
    def equals(self, other: "Steps") -> bool:
        """Whether both make the same steps of any maps, and learn nothing."""

    @abstractmethod
    def places(self) -> Tensor:
        """Row and column (S, 2) of each step of a frame, where steps are locations; see `place_map`."""


class TapSteps(Steps):
    """Steps of one tap's maps: the tail if there is one, pooling, standardisation, the scan."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        map_shape: MapShape,
        standardisation: Standardisation | None = None,
        tail: nn.Module | None = None,
        place: Place | None = None,
    ) -> None:
        """For maps of `map_shape`; or, with `place`, for those of one stream among those of all."""
        super().__init__()
        self.config = config
        self.map_shape = place.fused_shape if place else map_shape
        self.tail = None if tail is None else Tail(tail)
        self.learns = tail is not None
        self._place = place
        with torch.no_grad():
            example = self._pooled(torch.zeros(1, 1, *self.map_shape))
        channels, height, width = example.shape[2:]
        self.map_size = (height, width)
        identity = Standardisation(torch.zeros(channels), torch.ones(channels))
        self.standardise = Standardise(standardisation or identity)
        self.num_features = self._scan(example).shape[3]

    def read(self, maps: Tensor, lengths: Tensor | None) -> Tensor:
        """See `Steps`."""
        return self._scan(self.standardise(self._pooled(maps, lengths)))

    def equals(self, other: Steps) -> bool:
        """See `Steps`."""
        return (
            isinstance(other, TapSteps)
            and not (self.learns or other.learns)
            and self._settings() == other._settings()
            and torch.equal(self.standardise.mean, other.standardise.mean)
            and torch.equal(self.standardise.std, other.standardise.std)
        )

    def _settings(self) -> tuple[object, ...]:
        config = self.config
        scan = (config.pooling, config.scan, config.scan_size, config.scan_every)
        return self.map_shape, self._place, *scan

    def places(self) -> Tensor:
        """See `Steps`."""
        return self._scan(place_map(*self.map_size))

    def _pooled(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        maps = self._place.take(maps) if self._place else maps
        return pool(maps if self.tail is None else self.tail(maps, lengths), self.config.pooling)

    def _scan(self, maps: Tensor) -> Tensor:
        config = self.config
        return to_steps(maps, scan=config.scan, scan_size=config.scan_size, scan_every=config.scan_every)


class FusedSteps(Steps):
    """The steps of several streams, joined: each frame's n-th step is the n-th one of every stream."""

    def __init__(self, parts: Sequence[TapSteps], *, averaged: bool = False) -> None:
        """`averaged`: a frame has one step, which joins the means of the streams' steps.

        Raises ConfigError for streams with other numbers of steps in a frame that are not averaged.
        """
        super().__init__()
        self._averaged = averaged
        self._parts = nn.ModuleList(parts)
        self.map_shape, self.map_size = parts[0].map_shape, parts[0].map_size
        self.num_features = sum(part.num_features for part in parts)
        with torch.no_grad():
            example = torch.zeros(1, 1, *self.map_shape)
            numbers = [values.shape[2] for values in self._values(example, None)]
        if len(set(numbers)) > 1:
            raise ConfigError(
                f"A frame has {', '.join(map(str, numbers))} steps in the streams, and early fusion joins"
                " them one by one: set other scans or poolings, or fusion to late."
            )

    def read(self, maps: Tensor, lengths: Tensor | None) -> Tensor:
        """See `Steps`."""
        return torch.cat(self._values(maps, lengths), dim=3)

    def _values(self, maps: Tensor, lengths: Tensor | None) -> list[Tensor]:
        values = [part.read(maps, lengths) for part in self.parts]
        return [each.mean(dim=2, keepdim=True) for each in values] if self._averaged else values

    @property
    def parts(self) -> list[TapSteps]:
        """The steps of each stream."""
        return [cast(TapSteps, part) for part in self._parts]

    def equals(self, other: Steps) -> bool:
        """See `Steps`."""
        return (
            isinstance(other, FusedSteps)
            and (self._averaged, len(self.parts)) == (other._averaged, len(other.parts))
            and all(one.equals(two) for one, two in zip(self.parts, other.parts, strict=True))
        )

    def places(self) -> Tensor:
        """See `Steps`."""
        return self.parts[0].places()


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
