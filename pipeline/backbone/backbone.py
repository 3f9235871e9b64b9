"""The frozen network at work: preprocessing, and the forward pass from pixels to feature maps."""

import logging
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.backbone.networks import (
    build_network,
    check_state,
    fold_batchnorms,
    map_shape,
    split_into_stages,
)
from pipeline.backbone.resize import Window, crop, resize
from pipeline.contract import CENTER, Backend, FrameView, Precision, Preprocessing, Triple
from pipeline.errors import ConfigError
from pipeline.settings.weights import check_taps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A trained trunk as a value. `pipeline.backbone.weights` obtains, saves and loads it."""

    arch: str
    sha256: str  # of the bytes of the weights file
    mean: Triple  # of RGB in [0, 1], as the network was trained with
    std: Triple
    source: str  # where it came from, for people
    state: dict[str, Tensor]  # torchvision's names; see `trunk_shapes`


class Backbone:
    """A frozen trunk on a device, run up to the deepest of its taps.

    Values depend on the pixels alone: each BatchNorm is folded into its convolution, float32 is float32
    (no TF32), and no kernel is chosen by timing.

    Attributes: arch, taps, device, backend, and trunk: the module (B, 3, H, W) uint8 -> maps of each tap.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        taps: Sequence[str],
        device: torch.device,
        precision: Precision = "float32",
        backend: Backend = "eager",
    ) -> None:
        """`precision` is that of weights and activations; `backend` "inductor" compiles at the first call.

        Raises ConfigError for an unknown tap or a backend that can't work here, WeightsError when the
        weights do not fit the arch.
        """
        check_taps(weights.arch, taps)
        check_state(weights.arch, weights.state)
        if backend == "inductor":
            _check_inductor(device)
        if precision == "float16" and device.type == "cpu":
            log.warning("A CPU is slower in float16 than in float32. bfloat16 is faster where it has AMX.")
        self.arch = weights.arch
        self.taps = tuple(taps)
        self.device = device
        self.precision = precision
        self.backend = backend
        self.num_frames: int | None = None  # that it reads at once, in a window; None: single frames
        network = build_network(weights.arch)
        network.load_state_dict(weights.state, strict=False, assign=True)
        self.trunk: nn.Module = _Trunk(
            split_into_stages(network), self.taps, weights.mean, weights.std, getattr(torch, precision)
        ).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._run: Callable[[Tensor], list[Tensor]] = self.trunk
        if backend == "inductor":
            # `deterministic`: inductor's kernels are not chosen by timing either.
            self._run = torch.compile(
                self.trunk,
                fullgraph=True,
                dynamic=False,
                options={"freezing": device.type == "cpu", "deterministic": True},
            )

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """The feature maps of RGB images.

        Takes (B, 3, H, W) uint8 on any device, fastest in channels-last memory; gives {tap: (B, C, h, w)}
        in the precision, on the backbone's device, channels-last in memory, in the order of `taps`. The
        backend "inductor" compiles again for every new shape of pixels. Raises TypeError for other dtypes.
        """
        if pixels.dtype != torch.uint8:
            raise TypeError(f"Pixels must be uint8, not {pixels.dtype}.")
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            pixels = pixels.to(self.device).contiguous(memory_format=torch.channels_last)
            return dict(zip(self.taps, self._run(pixels), strict=True))

    def map_shape(self, tap: str, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of `tap` for images of `height` x `width` pixels."""
        return map_shape(self.arch, tap, height=height, width=width)


class _Trunk(nn.Module):
    """From pixels (B, 3, H, W) uint8 to the taps' maps, normalisation included."""

    def __init__(
        self,
        stages: Mapping[str, nn.Module],
        taps: Sequence[str],
        mean: Triple,
        std: Triple,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._taps = tuple(taps)
        self._dtype = dtype
        deepest = max(list(stages).index(tap) for tap in taps)
        self._stages = nn.ModuleDict(dict(list(stages.items())[: deepest + 1]))
        fold_batchnorms(self._stages)  # before weights are rounded to `dtype`
        self._stages.to(dtype)
        # (pixel / 255 - mean) / std in two steps
        self._mean = nn.Buffer(255 * torch.tensor(mean).view(3, 1, 1))
        self._std = nn.Buffer(255 * torch.tensor(std).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        x = pixels.to(torch.float32).sub_(self._mean).div_(self._std).to(self._dtype)  # (B, 3, H, W)
        maps = {}
        for tap, stage in self._stages.items():
            x = stage(x)  # (B, C, h, w)
            maps[tap] = x
        return [maps[tap] for tap in self._taps]


def _check_inductor(device: torch.device) -> None:
    """Raise ConfigError unless torch.compile can generate code for this device on this machine."""
    if device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        headers = Path(sysconfig.get_path("include"), "Python.h")
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            missing = "a C++ compiler, and there is none: install g++ or clang"
        else:
            missing = "" if headers.exists() else f"Python's headers, and there is no {headers}: install them"
    else:
        from torch.utils._triton import has_triton

        missing = "" if has_triton() else "Triton, which does not work here: install it"
    if missing:
        raise ConfigError(f"The backend 'inductor' needs {missing}, or choose 'eager'.")


# How many times faster the backend "inductor" is, and how long it compiles. CPU: ResNet-50 at 224 pixels,
# float32, measured on two cores. CUDA: not measured here; 1.4 is timm's published ratio on an RTX 4090.
_COMPILED_SPEED = {"cpu": 1.04, "cuda": 1.4}
_COMPILE_SECONDS = {"cpu": 40.0, "cuda": 60.0}


def seconds_saved_by_compiling(eager_seconds: float, *, device: torch.device) -> float:
    """Seconds that the backend "inductor" saves when forward passes take `eager_seconds` with "eager".

    Negative when compiling takes longer than it saves.
    """
    return eager_seconds * (1 - 1 / _COMPILED_SPEED[device.type]) - _COMPILE_SECONDS[device.type]


_RESIZED_BYTES = 64 << 20  # of frames that are resized at once, before they are cropped


def preprocess(pixels: Tensor, preprocessing: Preprocessing, view: FrameView = CENTER) -> Tensor:
    """Resize and crop the frames of a clip as torchvision's transforms do: its centre, or what `view` shows.

    Takes (T, H, W, 3) uint8 on any device, gives (T, 3, h, w) uint8 there, in channels-last memory, h x w
    being the crop; it may be a view of `pixels` where there is nothing to do.
    Like Pillow, resizing is antialiased, horizontal then vertical, and rounds to uint8 after each:
    equal to Pillow to one level (two when enlarging), and the same bits on every device. (Pillow 13
    goes vertically first where that is cheaper; earlier ones never do.)

    Raises ValueError for frames that are not resized and are smaller than the crop.
    """
    preprocessing = view.zoomed(preprocessing)
    x = pixels.permute(0, 3, 1, 2)  # (T, 3, H, W)
    height, width = x.shape[2:]
    size = preprocessing.resized_size(height, width)
    crop_height, crop_width = preprocessing.crop_size
    top, left = view.place((size[0] - crop_height, size[1] - crop_width))
    window = Window(top, left, crop_height, crop_width)

    def prepared(x: Tensor) -> Tensor:
        if size == (height, width):
            x = crop(x, window)  # (T, 3, h, w)
        else:
            x = resize(x, size=size, window=window, interpolation=preprocessing.interpolation)
        return (x.flip(3) if view.flip else x).contiguous(memory_format=torch.channels_last)

    # What is resized is larger than what is cropped from it, without bound for a narrow frame.
    num_at_once = max(1, _RESIZED_BYTES // (3 * max(height, size[0]) * max(width, size[1])))
    if len(x) <= num_at_once:
        return prepared(x)
    return torch.cat([prepared(x[i : i + num_at_once]) for i in range(0, len(x), num_at_once)])
