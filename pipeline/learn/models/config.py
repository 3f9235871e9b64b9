"""The settings of a model of a clip."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from pipeline.learn.models.cells import CELLS
from pipeline.learn.models.decoder_cells import DecoderConfig
from pipeline.learn.models.frame_nets import FRAME_NETS
from pipeline.learn.models.questions import QuestionConfig
from pipeline.learn.models.summaries import SUMMARIES
from pipeline.learn.models.transformer import check_heads
from pipeline.learn.sequences import POOLINGS, SCANS
from pipeline.registry import either, one_of


class ModelConfig(BaseModel):
    """From maps to outputs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scan: Annotated[str, one_of(SCANS)] = "frames"  # how a map becomes steps; see pipeline/learn/sequences.py
    scan_size: PositiveInt = 1  # rows or columns of a strip
    scan_every: PositiveInt = 1  # keep every n-th step of each frame
    # A per-frame network reads each frame's steps; a second network reads its results. cell: both have the
    # same `cell`; points: the maximum of each of `projection` learned channels, and its place; null: none.
    frame_net: Annotated[str, one_of(FRAME_NETS)] | None = None
    pooling: Annotated[str, one_of(POOLINGS)] = "flatten"  # of each map before the scan; flatten: keep all
    projection: PositiveInt | None = 64  # features of a step after a learned linear layer; null: no layer
    cell: Annotated[str, one_of(CELLS)] = "lstm"  # network that reads the steps; none: each step by itself
    hidden_size: PositiveInt = 128  # of each direction
    num_layers: PositiveInt = 1
    num_heads: PositiveInt = 4  # of a transformer; divides hidden_size
    bidirectional: bool = False  # also read from the end; a transformer: see later steps, too
    summary: Annotated[str, one_of(SUMMARIES)] = "last"  # one vector from the states, for the last layer
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5  # of steps, between layers, and of the summary
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
    def _scan_has_its_options(self) -> Self:
        scan = SCANS[self.scan]
        if self.scan_size > 1 and not scan.is_strips:
            strips = either(name for name, scan in SCANS.items() if scan.is_strips)
            raise ValueError(f"scan_size {self.scan_size} is for strips; set scan to {strips}")
        if self.scan_every > 1 and scan.is_whole_frame:
            raise ValueError(
                f"scan_every {self.scan_every} is for scans with several steps a frame, and {self.scan!r} has"
                " one; to read fewer frames, extract fewer"
            )
        return self

    @model_validator(mode="after")
    def _frame_net_has_steps(self) -> Self:
        if self.frame_net is None:
            return self
        scan = SCANS[self.scan]
        if scan.is_whole_frame:
            others = either(name for name, scan in SCANS.items() if not scan.is_whole_frame)
            raise ValueError(
                f"frame_net {self.frame_net!r} needs several steps a frame; set scan to {others}"
            )
        if FRAME_NETS[self.frame_net].needs_places and (scan.axes != "hw" or self.projection is None):
            places = either(name for name, scan in SCANS.items() if scan.axes == "hw")
            raise ValueError(
                f"frame_net {self.frame_net!r} finds projection channels among locations: set scan to"
                f" {places}, and projection to a number"
            )
        return self

    @model_validator(mode="after")
    def _heads_share_the_state(self) -> Self:
        if CELLS[self.cell].has_heads:
            check_heads(self.hidden_size, self.num_heads)
        return self
