"""Settings of a model of a clip, from its maps to outputs, and what each choice among networks means."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from pipeline.registry import either, one_of
from pipeline.settings.scans import SCANS, Pooling
from pipeline.settings.streams import Fusion, Stream
from pipeline.settings.words import DecoderConfig, QuestionConfig, check_heads

Summary = Literal["last", "mean", "max", "attention"]


@dataclass(frozen=True)
class Cell:
    """A network that reads a sequence's steps."""

    label: str  # of the model in tables of results
    has_layers: bool = True  # of hidden_size, which read in one direction or both; without: no network
    has_projection: bool = True  # a layer of its own before it
    has_backward_half: bool = False  # if bidirectional, a state's second half has read from the end
    has_heads: bool = False  # num_heads divides hidden_size
    reads_chunks: bool = False  # a long clip, of which some frames at a time are in memory


CELLS: dict[str, Cell] = {
    "lstm": Cell("LSTM", has_backward_half=True, reads_chunks=True),
    "gru": Cell("GRU", has_backward_half=True, reads_chunks=True),
    "rnn": Cell("RNN", has_backward_half=True, reads_chunks=True),
    "transformer": Cell("transformer", has_projection=False, has_heads=True),
    "none": Cell("no recurrence", has_layers=False, reads_chunks=True),
}


@dataclass(frozen=True)
class FrameNet:
    """A network that reads each frame's steps, before a second one reads the frames."""

    uses_summary: bool = False  # `summary` is of a frame's steps
    needs_places: bool = False  # steps must be locations, and `projection` is a number of channels


FRAME_NETS: dict[str, FrameNet] = {
    "cell": FrameNet(uses_summary=True),
    "points": FrameNet(needs_places=True),
}


class AugmentConfig(BaseModel):
    """Changes of the steps that a model reads in training, drawn anew for each batch; 0: no change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    frame_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # share of frames that are replaced by the mean
    time_warp: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # frames come at most this share of a clip early or late
    )
    mixup: Annotated[float, Field(ge=0, le=0.5)] = 0.0  # largest share of another clip, in steps and targets
    noise: Annotated[float, Field(ge=0)] = 0.0  # Gaussian, in deviations of each channel


class ModelConfig(BaseModel):
    """From maps to outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scan: Annotated[str, one_of(SCANS)] = "frames"  # how a map becomes steps; see pipeline/learn/sequences.py
    scan_size: PositiveInt = 1  # rows or columns of a strip
    scan_every: PositiveInt = 1  # keep every n-th step of each frame
    # A per-frame network reads each frame's steps; a second network reads its results. cell: both have the
    # same `cell`; points: the maximum of each of `projection` learned channels, and its place; null: none.
    frame_net: Annotated[str, one_of(FRAME_NETS)] | None = None
    pooling: Pooling = "flatten"  # of each map before the scan; flatten: keep all
    streams: tuple[Stream, ...] = ()  # features of other taps, read beside these; each a tap or a section
    fusion: Fusion = "early"  # of streams: their steps are joined; late: outputs of a model each are averaged
    projection: PositiveInt | None = 64  # features of a step after a learned linear layer; null: no layer
    cell: Annotated[str, one_of(CELLS)] = "lstm"  # network that reads the steps; none: each step by itself
    hidden_size: PositiveInt = 128  # of each direction
    num_layers: PositiveInt = 1  # of the cell
    num_heads: PositiveInt = 4  # of a transformer; divides hidden_size
    bidirectional: bool = True  # also read from the end; a transformer: see later steps, too
    summary: Summary = "last"  # one vector from the states, for the last layer
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of steps, between layers, and of the summary
    augment: AugmentConfig = AugmentConfig()  # of steps, in training
    decoder: DecoderConfig = DecoderConfig()  # of captions
    question: QuestionConfig = QuestionConfig()  # network that reads questions

    @property
    def has_backward_half(self) -> bool:
        """Whether the second half of a state comes from a net that reads from the end to the beginning."""
        return self.bidirectional and CELLS[self.cell].has_backward_half

    @property
    def label(self) -> str:
        """The model's name in tables of results."""
        return CELLS[self.cell].label

    @model_validator(mode="after")
    def _points_have_places(self) -> Self:
        if self.frame_net is None or not FRAME_NETS[self.frame_net].needs_places:
            return self
        if SCANS[self.scan].axes != "hw" or self.projection is None:
            places = either(name for name, scan in SCANS.items() if scan.axes == "hw")
            raise ValueError(
                f"frame_net {self.frame_net!r} finds projection channels among locations: set scan to"
                f" {places}, and projection to a number"
            )
        return self

    @model_validator(mode="after")
    def _streams_can_be_fused(self) -> Self:
        if not self.streams:
            return self
        if self.frame_net and FRAME_NETS[self.frame_net].needs_places:
            raise ValueError(f"frame_net {self.frame_net!r} finds places in one map: leave out streams")
        if self.fusion == "early" and (names := [each.tap for each in self.streams if each.projection]):
            raise ValueError(
                f"the projection of {', '.join(names)} needs fusion late: in early fusion, one"
                " projection reads the steps of all streams"
            )
        if self.fusion == "late" and self.augment != AugmentConfig():
            raise ValueError("augment needs fusion early: models that are averaged would draw apart")
        return self

    def of_stream(self, stream: Stream | None) -> Self:
        """The settings of a model that reads one stream alone; None: the features of `tap`."""
        fields: dict[str, object] = {"streams": (), "fusion": "early"}
        if stream:
            fields |= {name: value for name, value in stream if name != "tap"}
            fields["projection"] = stream.projection or self.projection
        return self.model_copy(update=fields)

    @model_validator(mode="after")
    def _heads_share_the_state(self) -> Self:
        if CELLS[self.cell].has_heads:
            check_heads(self.hidden_size, self.num_heads)
        return self
