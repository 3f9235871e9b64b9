"""Models of a clip: maps (B, T, C, H, W) in, K outputs a clip or a frame out."""

import copy
from typing import Annotated, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.learn.models.decoder import DecoderConfig
from pipeline.learn.models.encoder import CELLS, RecurrentEncoder
from pipeline.learn.models.frames import FeaturePoints, check_inputs, map_frames, place_map
from pipeline.learn.models.questions import QuestionConfig
from pipeline.learn.models.summaries import SUMMARIES, Attention, last, mean, valid_steps
from pipeline.learn.models.tail import Tail
from pipeline.learn.models.transformer import NoEncoder, TransformerEncoder, check_heads
from pipeline.learn.sequences import pool, to_steps
from pipeline.learn.streaming import Standardisation

Encoder = RecurrentEncoder | TransformerEncoder | NoEncoder


class ModelConfig(BaseModel):
    """From maps to outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # how maps become steps; see pipeline/learn/sequences.py
    scan: Literal[
        "frames", "locations", "rows", "columns", "horizontal_strips", "vertical_strips", "channels"
    ] = "frames"
    scan_size: PositiveInt = 1  # height or width of a strip
    scan_every: PositiveInt = 1  # of a frame's steps the first, and each n-th after it
    # a first net reads each frame's steps, the next one what it says of the frames; cell: as `cell` says;
    # points: of `projection` learned channels the largest value and where it is
    frame_net: Literal["cell", "points"] | None = None
    pooling: Literal["flatten", "avg", "max"] = "flatten"  # over the locations of a map, before the scan
    projection: PositiveInt | None = 64  # learned linear map of a step before the recurrence; null: none
    # what reads the steps; transformer: bidirectional or else causal; none: nothing, steps are only projected
    cell: Literal["lstm", "gru", "rnn", "transformer", "none"] = "lstm"
    hidden_size: PositiveInt = 128  # of each direction
    num_layers: PositiveInt = 1
    num_heads: PositiveInt = 4  # of a transformer; divides hidden_size
    bidirectional: bool = False
    summary: Literal["last", "mean", "max", "attention"] = "last"  # of the states, for the head
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of steps, between layers, and of the summary
    decoder: DecoderConfig = DecoderConfig()  # of captions
    question: QuestionConfig = QuestionConfig()  # of what reads questions

    @property
    def has_backward_half(self) -> bool:
        """Whether the second half of a state comes from a net that reads from the end to the beginning."""
        return self.bidirectional and self.cell in CELLS

    @model_validator(mode="after")
    def _scan_has_its_options(self) -> Self:
        if self.scan_size > 1 and not self.scan.endswith("strips"):
            raise ValueError(
                f"scan_size {self.scan_size} is for strips; set scan to horizontal_strips or vertical_strips"
            )
        if self.scan == "frames" and self.frame_net:
            raise ValueError(
                f"frame_net {self.frame_net!r} needs several steps a frame; set scan to locations, rows, ..."
            )
        if self.frame_net == "points" and (self.scan != "locations" or self.projection is None):
            raise ValueError(
                "frame_net 'points' finds projection channels among locations: set scan to locations, and"
                " projection to a number"
            )
        if self.scan == "frames" and self.scan_every > 1:
            raise ValueError(
                f"scan_every {self.scan_every} is for scans with several steps a frame; frames are chosen by"
                " extract.sampling"
            )
        if self.cell == "transformer":
            check_heads(self.hidden_size, self.num_heads)
        return self


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
    """What every model of a clip begins with: a tail if there is one, pooling, standardisation, the scan."""

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
        """Row and column (S, 2) of each of a frame's steps, if these are locations; see `place_map`."""
        return self._scan(place_map(*self.map_size))

    def _pooled(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        return pool(maps if self.tail is None else self.tail(maps, lengths), self.config.pooling)

    def _scan(self, maps: Tensor) -> Tensor:
        config = self.config
        return to_steps(maps, scan=config.scan, scan_size=config.scan_size, scan_every=config.scan_every)


class FrameCell(nn.Module):
    """A frame net like the one that reads the frames: an encoder over the frame's steps, and a summary."""

    def __init__(self, config: ModelConfig, num_features: int) -> None:
        super().__init__()
        self.bidirectional = config.has_backward_half
        self.encoder = _encoder(config, num_features, projection=config.projection)
        self.num_outputs = self.encoder.num_outputs
        self.summary = SUMMARIES[config.summary](self.num_outputs)

    def forward(self, steps: Tensor) -> Tensor:
        """Steps (N, S, D) of frames -> what they say of each frame (N, E)."""
        states = self.encoder(steps, None)
        summary: Tensor = self.summary(states, _full_lengths(states), bidirectional=self.bidirectional)
        return summary


class RecurrentModel(nn.Module):
    """Steps, a recurrent net, a summary of its states, and a linear head.

    `per_frame`: the head answers at every frame, from the state at which the net has read the frame's
    steps (a bidirectional net: from either side). With a `frame_net` the steps are what that net says of
    each frame.
    """

    def __init__(
        self, config: ModelConfig, *, steps: Steps, num_outputs: int, per_frame: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.per_frame = per_frame
        self.steps = steps
        num_features, projection = steps.num_features, config.projection
        self.frame_net: FeaturePoints | FrameCell | None = None
        if config.frame_net:
            if config.frame_net == "points":
                self.frame_net = FeaturePoints(
                    num_features, places=steps.places(), num_channels=projection or num_features
                )
            else:
                self.frame_net = FrameCell(config, num_features)
            num_features, projection = self.frame_net.num_outputs, None
        self.encoder = _encoder(config, num_features, projection=projection)
        self.summary = SUMMARIES[config.summary](self.encoder.num_outputs)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.encoder.num_outputs, num_outputs)

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps (B, T, C, H, W) and lengths (B,) in frames, on the CPU -> outputs (B, K) or (B, T, K).

        Without `lengths` all frames are valid. Outputs of padding frames mean nothing.
        """
        return self.answer(*self.encode(maps, lengths))

    def answer(self, states: Tensor, num_steps: Tensor) -> Tensor:
        """What `encode` gives -> outputs (B, K) or (B, T, K)."""
        bidirectional = self.config.has_backward_half
        if self.per_frame:
            frames = states.flatten(0, 1)  # (B * T, S, E)
            ends = last(frames, _full_lengths(frames), bidirectional=bidirectional)
            summary = ends.view(*states.shape[:2], -1)  # (B, T, E)
        else:
            summary = self.summary(states.flatten(1, 2), num_steps, bidirectional=bidirectional)  # (B, E)
        outputs: Tensor = self.head(self.dropout(summary))
        return outputs

    def encode(self, maps: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The states at the steps of each frame (B, T, S, E), and the clips' lengths (B,) in steps."""
        steps = self.steps(maps, lengths)  # (B, T, S, D)
        if self.frame_net:
            steps = map_frames(self.frame_net, steps, lengths).unsqueeze(2)  # (B, T, 1, D)
        num_steps = None if lengths is None else lengths * steps.shape[2]
        states = self.encoder(steps.flatten(1, 2), num_steps)  # (B, T * S, E)
        num_steps = _full_lengths(states) if num_steps is None else num_steps
        return states.view(*steps.shape[:3], -1), num_steps

    def attention(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What each step of each frame counts in the answer (B, T, S); sums to 1 over a clip's steps.

        Raises ConfigError when the summary is another than attention.
        """
        if not isinstance(self.summary, Attention):
            raise ConfigError(
                f"summary {self.config.summary!r} has no weights: set train.summary to attention."
            )
        states, num_steps = self.encode(maps, lengths)
        return self.summary.weights(states.flatten(1, 2), num_steps).view(states.shape[:3])


class MeanPoolModel(nn.Module):
    """The baseline that cannot see order: the mean of a clip's or a frame's steps, and a linear head."""

    def __init__(
        self, config: ModelConfig, *, steps: Steps, num_outputs: int, per_frame: bool = False
    ) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.steps = steps
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(steps.num_features, num_outputs)

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps (B, T, C, H, W) and lengths (B,) in frames -> outputs (B, K) or (B, T, K)."""
        steps = self.steps(maps, lengths).mean(dim=2)  # (B, T, D)
        lengths = _full_lengths(steps) if lengths is None else lengths
        if self.per_frame:
            summary = steps.masked_fill(~valid_steps(steps, lengths), 0)  # (B, T, D)
        else:
            summary = mean(steps, lengths)  # (B, D)
        outputs: Tensor = self.head(self.dropout(summary))
        return outputs


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
    per_frame: bool = False,
    standardisation: Standardisation | None = None,
    tail: nn.Module | None = None,
    seed: int = 0,
) -> RecurrentModel | MeanPoolModel:
    """A model of MODELS for maps (C, H, W), with initial weights from `seed`.

    `tail`: layers to be trained between the maps and the model; it gets a copy. `standardisation` is of the
    pooled maps, or of the tail's pooled outputs if there is one; without it they pass as they are.
    """
    steps = Steps(config, map_shape=map_shape, standardisation=standardisation, tail=copy.deepcopy(tail))
    torch.manual_seed(seed)
    return MODELS[name](config, steps=steps, num_outputs=num_outputs, per_frame=per_frame)


def _encoder(config: ModelConfig, num_features: int, *, projection: int | None) -> Encoder:
    if config.cell == "none":
        return NoEncoder(num_features, projection=projection, dropout=config.dropout)
    if config.cell == "transformer":
        return TransformerEncoder(
            num_features,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            bidirectional=config.bidirectional,
            dropout=config.dropout,
        )
    return RecurrentEncoder(
        num_features,
        cell=config.cell,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        bidirectional=config.bidirectional,
        projection=projection,
        dropout=config.dropout,
    )


def _full_lengths(steps: Tensor) -> Tensor:
    """The lengths (B,) of steps (B, L, E) without padding."""
    return torch.full((steps.shape[0],), steps.shape[1])
