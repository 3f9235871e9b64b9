"""What is extracted, and how."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.contract import FeatureContract, Preprocessing, Sampling
from pipeline.devices import DeviceName
from pipeline.store import Layout, StoreConfig


class ExtractConfig(BaseModel):
    """Which features, and how they are computed and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    taps: Annotated[tuple[str, ...], Field(min_length=1)] = ("layer4",)  # layers whose maps are kept
    sampling: Sampling = Sampling()  # all | every: n | fps: x | count: n
    preprocessing: Preprocessing = Preprocessing()
    pooling: Literal["none", "avg", "max"] = "none"  # over H and W, before storing
    dtype: Literal["float16", "float32"] = "float16"  # as stored
    device: DeviceName = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None  # null: 256 on a GPU, 32 on a CPU
    num_decoders: Annotated[int, Field(ge=1)] | None = None  # threads; null: by the number of cores
    store: StoreConfig = StoreConfig()


@dataclass(frozen=True)
class Target:
    """One tap's features: their contract, and the layout that they are stored in."""

    contract: FeatureContract
    layout: Layout
