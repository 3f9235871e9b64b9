"""Models of a whole clip: maps (B, T, C, H, W) in, K outputs a clip out."""

from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pipeline.models.encoder import RecurrentEncoder
from pipeline.models.summaries import SUMMARIES, mean
from pipeline.sequences import to_sequence
from pipeline.streaming import Standardisation

PositiveInt = Annotated[int, Field(ge=1)]


class ModelConfig(BaseModel):
    """From maps to outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scan: Literal["frames"] = "frames"  # how maps become steps
    pooling: Literal["flatten", "avg", "max"] = "flatten"  # over the locations of a map, before the scan
    projection: PositiveInt | None = 64  # learned linear map of a step before the recurrence; null: none
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    hidden_size: PositiveInt = 128  # of each direction
    num_layers: PositiveInt = 1
    bidirectional: bool = False
    summary: Literal["last", "mean", "max"] = "last"  # of the states, for the head
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of steps, between layers, and of the summary


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


class RecurrentModel(nn.Module):
    """Standardise, scan, encode, summarise, and a linear head."""

    def __init__(
        self, config: ModelConfig, *, num_features: int, num_outputs: int, standardisation: Standardisation
    ) -> None:
        super().__init__()
        self.config = config
        self.standardise = Standardise(standardisation)
        self.encoder = RecurrentEncoder(
            num_features,
            cell=config.cell,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            bidirectional=config.bidirectional,
            projection=config.projection,
            dropout=config.dropout,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.encoder.num_outputs, num_outputs)

    def forward(self, maps: Tensor, lengths: Tensor) -> Tensor:
        """Maps (B, T, C, H, W) and lengths (B,) in frames, on the CPU -> outputs (B, K)."""
        config = self.config
        steps, lengths = to_sequence(
            self.standardise(maps), lengths, scan=config.scan, pooling=config.pooling
        )  # (B, L, D)
        states = self.encoder(steps, lengths)  # (B, L, E)
        summary = SUMMARIES[config.summary](states, lengths, bidirectional=config.bidirectional)  # (B, E)
        outputs: Tensor = self.head(self.dropout(summary))
        return outputs  # (B, K)


class MeanPoolModel(nn.Module):
    """The baseline that cannot see order: the mean of a clip's steps, and a linear head."""

    def __init__(
        self, config: ModelConfig, *, num_features: int, num_outputs: int, standardisation: Standardisation
    ) -> None:
        super().__init__()
        self.config = config
        self.standardise = Standardise(standardisation)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(num_features, num_outputs)

    def forward(self, maps: Tensor, lengths: Tensor) -> Tensor:
        """Maps (B, T, C, H, W) and lengths (B,) in frames -> outputs (B, K)."""
        steps, lengths = to_sequence(
            self.standardise(maps), lengths, scan=self.config.scan, pooling=self.config.pooling
        )  # (B, L, D)
        outputs: Tensor = self.head(self.dropout(mean(steps, lengths)))
        return outputs  # (B, K)


# The model, and beside it what it has to beat.
MODELS: dict[str, type[RecurrentModel | MeanPoolModel]] = {
    "recurrent": RecurrentModel,
    "baseline": MeanPoolModel,
}


def build_model(
    name: str,
    config: ModelConfig,
    *,
    map_shape: tuple[int, int, int],
    num_outputs: int,
    standardisation: Standardisation | None = None,
    seed: int = 0,
) -> RecurrentModel | MeanPoolModel:
    """A model of MODELS for maps (C, H, W), with initial weights from `seed`.

    Without `standardisation` maps pass as they are.
    """
    example = torch.zeros(1, 1, *map_shape)
    steps, _ = to_sequence(example, torch.ones(1), scan=config.scan, pooling=config.pooling)  # (1, L, D)
    channels = map_shape[0]
    identity = Standardisation(torch.zeros(channels), torch.ones(channels))
    torch.manual_seed(seed)
    return MODELS[name](
        config,
        num_features=steps.shape[-1],
        num_outputs=num_outputs,
        standardisation=standardisation or identity,
    )
