"""Settings of streams: features of other taps, which a model reads beside those of its own."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator

from pipeline.registry import one_of
from pipeline.settings.scans import SCANS, Pooling

Fusion = Literal["early", "late"]


class Stream(BaseModel):
    """Another tap's features, and how its maps become steps; in YAML a mapping, or the tap alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tap: str  # of the features beside those of train.tap; network/tap: of another network
    scan: Annotated[str, one_of(SCANS)] = "frames"
    scan_size: PositiveInt = 1
    scan_every: PositiveInt = 1
    pooling: Pooling = "flatten"
    projection: PositiveInt | None = None  # of fusion late; null: as that of train

    @model_validator(mode="before")
    @classmethod
    def _tap_alone(cls, value: Any) -> Any:
        return {"tap": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _size_counts(self) -> Self:
        if self.scan_size != 1 and not SCANS[self.scan].is_strips:
            raise ValueError(f"scan_size {self.scan_size} does nothing with scan {self.scan!r}; take it out")
        return self
