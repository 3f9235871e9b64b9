"""The frozen network at work: preprocessing, and the forward pass from pixels to feature maps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.contract import Preprocessing, Size, Triple
from pipeline.errors import DecodeError
from pipeline.networks import build_network, check_state, check_taps, map_shape, split_into_stages


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
        network = build_network(weights.arch)
        network.load_state_dict(weights.state, strict=False, assign=True)
        stages = split_into_stages(network)
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
