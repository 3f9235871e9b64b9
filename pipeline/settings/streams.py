"""Settings of streams: features of other taps, which a model reads beside those of its own."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline.registry import one_of
from pipeline.settings.scans import SCANS, Pooling

Fusion = Literal["early", "late"]


class Stream(BaseModel):
    """Another tap's features, and how its maps become steps; in YAML a mapping, or the tap alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tap: str  # of features beside those of train.tap; network/tap: of those in features-network
    scan: Annotated[str, one_of(SCANS)] = "frames"  # as train.scan
    scan_size: PositiveInt = 1  # as train.scan_size
    scan_every: PositiveInt = 1  # as train.scan_every
    pooling: Pooling = "flatten"  # as train.pooling
    projection: PositiveInt | None = None  # as train.projection, which is that of null; with fusion late

    @model_validator(mode="before")
    @classmethod
    def _tap_alone(cls, value: Any) -> Any:
        return {"tap": value} if isinstance(value, str) else value

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> str | dict[str, Any]:
        """The tap alone where all else has its default."""
        values: dict[str, Any] = dump(self)
        return values if self != Stream(tap=self.tap) else self.tap

    @model_validator(mode="after")
    def _size_counts(self) -> Self:
        if self.scan_size != 1 and not SCANS[self.scan].is_strips:
            raise ValueError(f"scan_size {self.scan_size} does nothing with scan {self.scan!r}; take it out")
        return self
