"""Models of a clip: maps (B, T, C, H, W) in, K outputs a clip or a frame out."""

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.learn.models.attention import Memory
from pipeline.learn.models.augment import Augment
from pipeline.learn.models.cells import CELL_BUILDERS
from pipeline.learn.models.draws import Dropout
from pipeline.learn.models.frame_nets import FRAME_NET_BUILDERS, FrameEncoder
from pipeline.learn.models.frames import map_frames
from pipeline.learn.models.steps import ClipSteps, FusedSteps, Steps, TapSteps
from pipeline.learn.models.summaries import SUMMARIES, Attention, full_lengths, mean, valid_steps
from pipeline.learn.streaming import MapShape, Standardisation, places
from pipeline.settings.model import ModelConfig


class SequenceModel(nn.Module):
    """Steps, a net that reads them (`cell`), a summary of its states, and a linear head.

    With a `frame_net` the steps are the vectors that it makes of each frame. With `per_frame` the head
    answers at every frame, from the state after the frame's last step; a bidirectional net's backward half
    is taken from the frame's first step.
    """

    is_baseline: ClassVar[bool] = False
    remembers_steps: ClassVar[bool] = True  # its memory has a state for each step

    def __init__(
        self, config: ModelConfig, *, steps: Steps, num_outputs: int, per_frame: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.per_frame = per_frame
        self.steps = steps
        self.augment = Augment(config.augment)
        num_features, projection = steps.num_features, config.projection
        self.frame_net: FrameEncoder | None = None
        if config.frame_net:
            self.frame_net = FRAME_NET_BUILDERS[config.frame_net](config, steps)
            num_features, projection = self.frame_net.num_outputs, None
        self.encoder = CELL_BUILDERS[config.cell](config, num_features, projection)
        self.memory_size = self.encoder.num_outputs
        # At a frame, the state after its last step.
        self.summary = SUMMARIES["last" if per_frame else config.summary](self.encoder.num_outputs)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(self.encoder.num_outputs, num_outputs)

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps (B, T, C, H, W) and lengths (B,) in frames, on the CPU -> outputs (B, K) or (B, T, K).

        Without `lengths` all frames are valid. Outputs of padding frames mean nothing.
        """
        return self.answer(*self.encode(maps, lengths))

    def answer(self, states: Tensor, num_steps: Tensor) -> Tensor:
        """States (B, T, S, E) and lengths (B,) in steps, of `encode` -> outputs (B, K) or (B, T, K)."""
        bidirectional = self.config.has_backward_half
        if self.per_frame:
            frames = states.flatten(0, 1)  # (B * T, S, E)
            ends = self.summary(frames, full_lengths(frames), bidirectional=bidirectional)
            summary = ends.view(*states.shape[:2], -1)  # (B, T, E)
        else:
            summary = self.summary(states.flatten(1, 2), num_steps, bidirectional=bidirectional)  # (B, E)
        outputs: Tensor = self.head(self.dropout(summary))
        return outputs

    def encode(self, maps: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps and lengths as in `forward` -> states (B, T, S, E), and the clips' lengths (B,) in steps."""
        steps = self.read_steps(maps, lengths)
        states = self.encoder(steps.sequences)  # (B, T * S, E)
        num_steps = steps.sequences.lengths
        num_steps = full_lengths(states) if num_steps is None else num_steps
        return states.view(*steps.values.shape[:3], -1), num_steps

    def read_steps(self, maps: Tensor, lengths: Tensor | None = None) -> ClipSteps:
        """Maps and lengths as in `forward` -> the steps that the encoder reads."""
        steps: ClipSteps = self.augment(self.steps(maps, lengths))
        if self.frame_net is None:
            return steps
        return ClipSteps(map_frames(self.frame_net, steps.values, lengths).unsqueeze(2), lengths)

    def remember(self, maps: Tensor, lengths: Tensor | None = None) -> Memory:
        """Maps and lengths as in `forward` -> the states of all steps, and the outputs as their summary."""
        states, num_steps = self.encode(maps, lengths)  # (B, T, S, E)
        summary = self.answer(states, num_steps)
        states = states.flatten(1, 2)  # (B, L, E)
        return Memory(states, valid_steps(states, num_steps)[..., 0], summary)

    @property
    def has_attention(self) -> bool:
        """Whether the answer about a clip is an average over its steps, with the weights of `attention`."""
        return isinstance(self.summary, Attention)

    def attention(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The weight of each step of each frame in the answer (B, T, S); they sum to 1 over a clip's steps.

        Raises ConfigError when the summary is another than attention.
        """
        if not isinstance(self.summary, Attention):
            raise ConfigError(f"summary {self.config.summary!r} has no weights: set summary to attention.")
        states, num_steps = self.encode(maps, lengths)
        return self.summary.weights(states.flatten(1, 2), num_steps).view(states.shape[:3])


class MeanPoolModel(nn.Module):
    """The baseline that cannot see order: the mean of a clip's or a frame's steps, and a linear head."""

    is_baseline: ClassVar[bool] = True
    remembers_steps: ClassVar[bool] = False

    def __init__(
        self, config: ModelConfig, *, steps: Steps, num_outputs: int, per_frame: bool = False
    ) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.steps = steps
        self.augment = Augment(config.augment)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(steps.num_features, num_outputs)
        self.memory_size = num_outputs

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Maps (B, T, C, H, W) and lengths (B,) in frames -> outputs (B, K) or (B, T, K)."""
        steps = self.augment(self.steps(maps, lengths)).values.mean(dim=2)  # (B, T, D)
        lengths = full_lengths(steps) if lengths is None else lengths
        if self.per_frame:
            summary = steps.masked_fill(~valid_steps(steps, lengths), 0)  # (B, T, D)
        else:
            summary = mean(steps, lengths)  # (B, D)
        outputs: Tensor = self.head(self.dropout(summary))
        return outputs

    def remember(self, maps: Tensor, lengths: Tensor | None = None) -> Memory:
        """Maps and lengths as in `forward` -> the outputs as the only state, and as its summary."""
        summary = self(maps, lengths)  # (B, K)
        return Memory(summary[:, None], torch.ones_like(summary[:, :1], dtype=torch.bool), summary)


ClipModel = SequenceModel | MeanPoolModel

MODEL_CLASSES: dict[str, type[ClipModel]] = {
    "recurrent": SequenceModel,
    "baseline": MeanPoolModel,
}


class LateFusion(nn.Module):
    """Models that read one stream each; the answer is the mean of their outputs."""

    def __init__(self, models: Sequence[ClipModel]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Fused maps (B, T, D, 1, 1) and lengths (B,) in frames -> outputs (B, K) or (B, T, K)."""
        return torch.stack([model(maps, lengths) for model in self.models]).mean(dim=0)


def build_model(
    name: str,
    config: ModelConfig,
    *,
    map_shapes: Sequence[MapShape],
    num_outputs: int,
    per_frame: bool = False,
    standardisations: Sequence[Standardisation] | None = None,
    tail: nn.Module | None = None,
    seed: int = 0,
) -> ClipModel:
    """The model `name` of MODEL_CLASSES, with initial weights from `seed`; of streams with early fusion.

    `map_shapes` are (C, H, W) of the tap's maps, then of those of each of `config.streams`; with streams, the
    model reads fused maps. `standardisations` are of the pooled maps of each, or with a tail of its pooled
    outputs; None changes no value. `tail` has layers that are trained between the maps and the model, which
    gets a copy of them. Raises ConfigError for streams that can't be joined.
    """
    parts = _steps(config, map_shapes, standardisations, tail)
    kind = MODEL_CLASSES[name]
    steps = FusedSteps(parts, averaged=kind.is_baseline) if config.streams else parts[0]
    torch.manual_seed(seed)
    return kind(config, steps=steps, num_outputs=num_outputs, per_frame=per_frame)


def build_late_fusion(
    config: ModelConfig,
    *,
    map_shapes: Sequence[MapShape],
    num_outputs: int,
    per_frame: bool = False,
    standardisations: Sequence[Standardisation] | None = None,
    seed: int = 0,
) -> LateFusion:
    """A recurrent model of the tap, and one of each of `config.streams`; arguments as in `build_model`."""
    parts = _steps(config, map_shapes, standardisations, None)
    torch.manual_seed(seed)
    return LateFusion(
        [
            SequenceModel(part.config, steps=part, num_outputs=num_outputs, per_frame=per_frame)
            for part in parts
        ]
    )


def _steps(
    config: ModelConfig,
    map_shapes: Sequence[MapShape],
    standardisations: Sequence[Standardisation] | None,
    tail: nn.Module | None,
) -> list[TapSteps]:
    """Those of the tap, and of each stream."""
    configs = [config.of_stream(stream) for stream in (None, *config.streams)]
    return [
        TapSteps(
            each,
            map_shape=shape,
            standardisation=standardisations[number] if standardisations else None,
            tail=copy.deepcopy(tail),
            place=place if config.streams else None,
        )
        for number, (each, shape, place) in enumerate(
            zip(configs, map_shapes, places(map_shapes), strict=True)
        )
    ]
