"""Frozen torchvision networks: which exist, their taps, their trained weights as a value, preprocessing.

A tap is a named point of a network at which feature maps are taken:

    ResNet, ResNeXt, wide ResNet    layer1 .. layer4   output of the last block of that stage
                                    avgpool            mean of layer4 over H and W, (C, 1, 1)
    VGG (with or without BN)        block1 .. block5   output of that block's max-pool

Shallow to deep; what comes after the last tap (the classifier) is never built.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.contract import Preprocessing, Size, Triple
from pipeline.errors import ConfigError, DecodeError, WeightsError

_RESNET_TAPS = ("layer1", "layer2", "layer3", "layer4", "avgpool")
_VGG_TAPS = ("block1", "block2", "block3", "block4", "block5")

CLASSIFIERS = ("fc.", "classifier.")  # prefixes of the tensors that are no part of a trunk

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


@dataclass(frozen=True)
class Weights:
    """A trained trunk as a value; `pipeline.weights` obtains, saves and loads it."""

    arch: str
    sha256: str  # of the bytes of the weights file
    mean: Triple  # of RGB in [0, 1], as the network was trained with
    std: Triple
    source: str  # where it came from, for people
    state: dict[str, Tensor]  # torchvision's names; see `trunk_shapes`


class Backbone:
    """A frozen trunk on a device, run up to the deepest of its taps.

    Values depend on the pixels alone: BatchNorm is in eval mode, convolutions are in float32 (no
    TF32), and cuDNN chooses no kernel by timing.
    """

    def __init__(self, weights: Weights, *, taps: Sequence[str], device: torch.device) -> None:
        """Raises ConfigError for an unknown tap, WeightsError when the weights do not fit the arch."""
        check_taps(weights.arch, taps)
        check_state(weights.arch, weights.state)
        self.arch = weights.arch
        self.taps = tuple(taps)
        self.device = device
        network = _build_network(weights.arch)
        network.load_state_dict(weights.state, strict=False, assign=True)
        stages = _split_into_stages(network)
        deepest = max(list(stages).index(tap) for tap in taps)
        self._stages = dict(list(stages.items())[: deepest + 1])
        for stage in self._stages.values():
            stage.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(weights.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(weights.std, device=device).view(3, 1, 1)

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """The feature maps of RGB images.

        Takes (B, 3, H, W) uint8 on any device; gives {tap: (B, C, h, w) float32} on the backbone's
        device, channels-last in memory, in the order in which the taps were asked for.
        """
        assert pixels.dtype == torch.uint8, f"pixels must be uint8, not {pixels.dtype}"
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            x = pixels.to(self.device).to(torch.float32, memory_format=torch.channels_last)  # (B, 3, H, W)
            x = x.div_(255).sub_(self._mean).div_(self._std)
            maps = {}
            for tap, stage in self._stages.items():
                x = stage(x)  # (B, C, h, w)
                if tap in self.taps:
                    maps[tap] = x
        return {tap: maps[tap] for tap in self.taps}

    def map_shape(self, tap: str, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of `tap` for images of `height` x `width` pixels."""
        return map_shape(self.arch, tap, height=height, width=width)


def map_shape(arch: str, tap: str, *, height: int, width: int) -> tuple[int, int, int]:
    """(C, h, w) of a tap for images of `height` x `width` pixels; nothing is computed.

    Raises ConfigError for an unknown arch or tap, and for images too small for the tap.
    """
    check_taps(arch, [tap])
    x = torch.empty(1, 3, height, width, device="meta")
    for name, stage in _split_into_stages(_build_network(arch)).items():
        try:
            x = stage(x)
        except RuntimeError:
            raise ConfigError(
                f"Images of {height}x{width} pixels are too small for {name} of {arch}. Raise the crop."
            ) from None
        if name == tap:
            break
    _, channels, map_height, map_width = x.shape
    return channels, map_height, map_width


def trunk_shapes(arch: str) -> dict[str, torch.Size]:
    """Name and shape of each tensor of a trunk's state: torchvision's, up to the last tap.

    Without `num_batches_tracked`, which no frozen network reads and old weights files lack.
    """
    available_taps(arch)
    return {
        name: tensor.shape
        for name, tensor in _build_network(arch).state_dict().items()
        if not name.startswith(CLASSIFIERS) and not name.endswith("num_batches_tracked")
    }


def check_state(arch: str, state: dict[str, Tensor]) -> None:
    """Raise WeightsError listing every missing, unexpected or wrongly shaped tensor."""
    shapes = trunk_shapes(arch)
    problems = [f"missing {name}" for name in shapes if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in shapes]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(shape)}"
        for name, shape in shapes.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:20])
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise WeightsError(
            f"The weights do not fit {arch}; choose the arch they were trained with.{shown}{more}"
        )


def preprocess(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> Tensor:
    """Resize and centre-crop the frames of a clip as torchvision's transforms do.

    Takes (T, H, W, 3) uint8, gives (T, 3, h, w) uint8 in channels-last memory, h x w being the crop;
    it may be a view of `pixels` where there is nothing to do.
    Like Pillow, resizing is antialiased, horizontal then vertical, and rounds to uint8 after each:
    equal to Pillow to one level (two when enlarging), and the same bits on every CPU. (Pillow 13
    goes vertically first where that is cheaper; earlier ones never do.)

    Raises DecodeError when the frames, not resized, are smaller than the crop.
    """
    x = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(0, 3, 1, 2)  # (T, 3, H, W)
    height, width = x.shape[2:]
    size = _resized_size(height, width, preprocessing.resize)
    if size != (height, width):
        x = F.interpolate(x, size=size, mode=preprocessing.interpolation, antialias=True, align_corners=False)
    crop_height, crop_width = preprocessing.crop_size
    if size[0] < crop_height or size[1] < crop_width:
        raise DecodeError(
            f"Frames of {height}x{width} pixels (height x width) are smaller than the crop"
            f" {crop_height}x{crop_width}. Set preprocessing.resize, or a smaller crop."
        )
    top, left = round((size[0] - crop_height) / 2), round((size[1] - crop_width) / 2)
    x = x[:, :, top : top + crop_height, left : left + crop_width]  # (T, 3, h, w)
    return x.contiguous(memory_format=torch.channels_last)


def _resized_size(height: int, width: int, resize: int | Size | None) -> Size:
    if resize is None:
        return height, width
    if isinstance(resize, tuple):
        return resize
    longer = int(resize * max(height, width) / min(height, width))  # torchvision truncates
    return (resize, longer) if height <= width else (longer, resize)


def _build_network(arch: str) -> nn.Module:
    """torchvision's network without memory for its weights, frozen."""
    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(arch, weights=None)
    return network.eval().requires_grad_(False)


def _split_into_stages(network: nn.Module) -> dict[str, nn.Sequential]:
    """The trunk as {tap: the layers between the previous tap and this one}, shallow to deep."""
    if isinstance(network, torchvision.models.ResNet):
        n = network
        return {
            "layer1": nn.Sequential(n.conv1, n.bn1, n.relu, n.maxpool, n.layer1),
            "layer2": n.layer2,
            "layer3": n.layer3,
            "layer4": n.layer4,
            "avgpool": nn.Sequential(n.avgpool),
        }
    stages: dict[str, nn.Sequential] = {}
    layers: list[nn.Module] = []
    for layer in network.get_submodule("features").children():
        layers.append(layer)
        if isinstance(layer, nn.MaxPool2d):
            stages[f"block{len(stages) + 1}"] = nn.Sequential(*layers)
            layers = []
    return stages
