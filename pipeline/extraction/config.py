"""ExtractConfig: which features are extracted, and how."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.contract import (
    Backend,
    FeatureContract,
    Pooling,
    Precision,
    Preprocessing,
    Sampling,
    StoredDtype,
)
from pipeline.frames import Limits
from pipeline.store import Layout, StoreConfig
from pipeline.system.devices import DeviceName

Damaged = Literal["drop", "keep"]


class DaskConfig(BaseModel):
    """The workers of an extraction: `local: n` processes on this machine, or the address of a scheduler."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    local: Annotated[int, Field(ge=1)] | None = None  # they share the cores; each has a GPU, if there are any
    scheduler: Annotated[str, Field(pattern=r"^(tcp|tls|ucx)://")] | None = None  # tcp://host:8786

    @model_validator(mode="before")
    @classmethod
    def _accept_an_address(cls, value: Any) -> Any:
        return {"scheduler": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.local is None) == (self.scheduler is None):
            raise ValueError("give null, 'local: n', or a scheduler's address, 'tcp://host:8786'")
        return self


class ExtractConfig(BaseModel):
    """Which features, and how they are computed and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    taps: Annotated[tuple[str, ...], Field(min_length=1)] = ("layer4",)  # layers whose maps are kept
    sampling: Sampling = Sampling()  # all | every: n | fps: x | count: n; all but count with max_frames: n
    limits: Limits = Limits()  # what a source may cost at most
    preprocessing: Preprocessing = Preprocessing()
    pooling: Pooling = "none"  # over H and W, before storing
    dtype: StoredDtype = "float16"  # as stored
    precision: Precision = "float32"  # of the network: float16 and bfloat16 are faster and less exact
    backend: Backend = "eager"  # inductor compiles the network first: pays when the run is long
    device: DeviceName = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None  # null: 256 on a GPU, 32 on a CPU
    num_decoders: Annotated[int, Field(ge=1)] | None = None  # threads; null: by the number of cores
    dask: DaskConfig | None = None  # which workers compute; null: this process
    damaged: Damaged = "drop"  # clips that can't be decoded to the end; keep: the frames before the damage
    min_frames: Annotated[int, Field(ge=1)] = 1  # clips with fewer are left out
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of clips left out; beyond it extract fails
    stall_seconds: Annotated[float, Field(gt=0)] = 300.0  # a run without progress for so long is restarted
    store: StoreConfig = StoreConfig()


@dataclass(frozen=True)
class Target:
    """One tap's features: their contract, and the layout that they are stored in."""

    contract: FeatureContract
    layout: Layout
