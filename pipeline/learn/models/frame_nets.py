"""Frame nets: the steps of each frame become one vector, before a second net reads the frames."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.learn.models.cells import CELL_BUILDERS
from pipeline.learn.models.encoder import Sequences
from pipeline.learn.models.steps import Steps
from pipeline.learn.models.summaries import SUMMARIES, full_lengths
from pipeline.settings.model import ModelConfig


class FrameEncoder(Protocol):
    """A module that reads frames, each by itself."""

    num_outputs: int  # E

    def __call__(self, steps: Tensor) -> Tensor:
        """Steps (N, S, D) of N frames -> a vector of each frame (N, E)."""
        ...


class FrameCell(nn.Module):
    """An encoder over a frame's steps, and a summary, built like those that then read the frames."""

    def __init__(self, config: ModelConfig, num_features: int) -> None:
        super().__init__()
        self.bidirectional = config.has_backward_half
        self.encoder = CELL_BUILDERS[config.cell](config, num_features, config.projection)
        self.num_outputs = self.encoder.num_outputs
        self.summary = SUMMARIES[config.summary](self.num_outputs)

    def forward(self, steps: Tensor) -> Tensor:
        """Steps (N, S, D) of N frames -> a vector of each frame (N, E)."""
        states = self.encoder(Sequences(steps))
        summary: Tensor = self.summary(states, full_lengths(states), bidirectional=self.bidirectional)
        return summary


class FeaturePoints(nn.Module):
    """What a frame shows, and where: the maximum of each of K learned channels, and its expected place.

    A linear layer makes the channels from each location's features. A channel's place is the mean of all
    places (row, column), weighted by the softmax of its values, with a learned sharpness: the feature points
    of Levine et al. 2016 (arXiv 1504.00702) and Finn et al. 2016 (arXiv 1509.06113). There is no dropout:
    drawn anew for each frame, it would shake the places and hide small motions.
    """

    places: Tensor

    def __init__(self, num_features: int, *, places: Tensor, num_channels: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_features, num_channels)
        self.sharpness = nn.Parameter(torch.ones(num_channels))
        self.register_buffer("places", places, persistent=False)  # (S, 2)
        self.num_outputs = 3 * num_channels

    def forward(self, steps: Tensor) -> Tensor:
        """Steps (N, S, D) of frames, their locations -> (N, 3 K): K maxima, then K times row and column."""
        channels = self.layer(steps)  # (N, S, K)
        weights = (self.sharpness * channels).softmax(dim=1)
        places = weights.transpose(1, 2) @ self.places  # (N, K, 2)
        return torch.cat([channels.amax(dim=1), places.flatten(1)], dim=1)


def _build_points(config: ModelConfig, steps: Steps) -> FrameEncoder:
    num_channels = config.projection or steps.num_features
    return FeaturePoints(steps.num_features, places=steps.places(), num_channels=num_channels)


FRAME_NET_BUILDERS: dict[str, Callable[[ModelConfig, Steps], FrameEncoder]] = {
    "cell": lambda config, steps: FrameCell(config, steps.num_features),
    "points": _build_points,
}
