"""The frozen network at work: preprocessing, and the forward pass from pixels to feature maps."""

import logging
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.inspection import Inspection, TapShape
from pipeline.backbone.networks import (
    build_network,
    build_own,
    check_state,
    default_size,
    fold_batchnorms,
    inspect_network,
    load_state,
)
from pipeline.backbone.resize import Window, resize
from pipeline.backbone.resize import crop as crop_to
from pipeline.backbone.trunk import Trunk, prune
from pipeline.contract import CENTER, Backend, FrameView, Layout, Precision, Preprocessing, Size, Triple
from pipeline.errors import ConfigError, ForeignCodeError, ShapeError
from pipeline.settings.networks import ARCHS, check_taps, is_own
from pipeline.system.own_code import OwnCode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Weights:
    """A trained trunk as a value. `sources` of this package obtains it, `weights` saves and loads it."""

    arch: str
    sha256: str  # of the bytes of the weights file
    mean: Triple  # of RGB in [0, 1], as the network was trained with
    std: Triple
    source: str  # where it came from, for people
    state: dict[str, Tensor]  # the network's names; without those of `HEADS`
    arguments: Mapping[str, Any] = field(default_factory=dict)  # that the network is built with
    own: OwnCode | None = None  # that builds the network, where it is not torchvision's
    code: str | None = None  # the version of `own`


class Backbone:
    """A frozen trunk on a device, run up to the deepest of its taps.

    Values depend on the pixels alone: each BatchNorm is folded into its convolution, float32 is float32
    (no TF32), and no kernel is chosen by timing.

    Attributes: arch, taps, device, precision, backend, num_frames, and trunk: the module (B, 3, H, W) uint8,
    or (B, 3, T, H, W), -> maps of each tap.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        taps: Sequence[str],
        device: torch.device,
        precision: Precision = "float32",
        backend: Backend = "eager",
        crop: Size | None = None,
        num_frames: int | None = None,
        layouts: Mapping[str, Layout] | None = None,
        class_token: bool = False,
    ) -> None:
        """A network for images, or with `num_frames` for clips of so many frames.

        `precision` is that of weights and activations; `backend` "inductor" compiles at the first call.
        `crop` is the (height, width) of the images; by default the size that the network is built for, and
        other sizes may follow. `layouts` are those of taps whose shapes do not tell them. With `class_token`,
        maps are the class token, (B, C, 1, 1).

        Raises ConfigError for a tap or layout that is unknown or impossible, and a backend that can't work
        here; WeightsError when the weights do not fit the arch.
        """
        check_taps(weights.arch, taps)
        _check_clips(weights.arch, num_frames)
        if backend == "inductor":
            _check_inductor(device)
        if precision == "float16" and device.type == "cpu":
            log.warning("A CPU is slower in float16 than in float32. bfloat16 is faster where it has AMX.")
        self.arch = weights.arch
        self.taps = tuple(taps)
        self.device = device
        self.precision = precision
        self.backend = backend
        self.num_frames = num_frames
        self._declared, self._class_token = dict(layouts or {}), class_token
        self._layouts: dict[tuple[int, ...], dict[str, Layout]] = {}  # by the shape of images, of each tap
        network = _network(weights)
        check_state(weights.arch, weights.state, network)
        load_state(network, weights.state)
        if weights.own:
            self._inspection = Inspection(network, weights.arch)
        else:
            self._inspection = inspect_network(weights.arch, weights.arguments)
        image = self._image(*(crop or default_size(network)))
        calls = {tap: self._inspection.call(tap, image) for tap in taps}
        order = [call.name for call in self._inspection.watched(image).calls]
        deepest = max((call.name for call in calls.values()), key=order.index)
        called = order[: order.index(deepest) + 1]
        pairs = self._inspection.foldable(image)
        fold_batchnorms(network, {conv: norm for conv, norm in pairs.items() if norm in called})
        if not weights.own:  # whose code may look at modules that it does not call
            prune(network, called)
        self._trunk = Trunk(
            network,
            {tap: call.name for tap, call in calls.items()},
            overwritten=[call.name for call in calls.values() if call.is_overwritten],
            deepest=deepest,
            mean=weights.mean,
            std=weights.std,
            num_axes=len(image),
            dtype=getattr(torch, precision),
            class_token=class_token,
        )
        self._memory_format = torch.contiguous_format if num_frames else torch.channels_last
        self.trunk: nn.Module = self._trunk.to(device, memory_format=self._memory_format)  # type: ignore[call-overload]
        if crop:
            self._settle(image)
        if weights.own:
            self._probe(image)
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
        """The feature maps of RGB images or clips.

        Takes (B, 3, H, W) uint8 on any device, fastest in channels-last memory, or (B, 3, T, H, W); gives
        {tap: (B, C, h, w)} in the precision, on the backbone's device, in the order of `taps`. Maps of clips
        are float32 means over the time that the network has left. The backend "inductor" compiles again for
        every new shape of pixels. Raises TypeError for other dtypes, ShapeError for other axes, ConfigError
        for images of a size that the network does not take.
        """
        if pixels.dtype != torch.uint8:
            raise TypeError(f"Pixels must be uint8, not {pixels.dtype}.")
        wanted = (5, self.num_frames) if self.num_frames else (4, None)
        if (pixels.ndim, pixels.shape[2] if pixels.ndim == 5 else None) != wanted:
            axes = f"(B, 3, {self.num_frames}, H, W)" if self.num_frames else "(B, 3, H, W)"
            raise ShapeError(f"Pixels are {tuple(pixels.shape)}, but {self.arch} reads {axes} here.")
        self._settle(tuple(pixels.shape[2:]))
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            pixels = pixels.to(self.device).contiguous(memory_format=self._memory_format)
            return dict(zip(self.taps, self._run(pixels), strict=True))

    def _probe(self, image: tuple[int, ...]) -> None:
        """Raise ConfigError for a network that answers otherwise when an image is in another batch."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (3, 3, *image), dtype=torch.uint8, generator=generator)
        self._run = self.trunk
        together, alone = self(pixels), [self(each[None]) for each in pixels]
        tolerance = 1e-3 if self.precision == "float32" else 0.1
        for tap, maps in together.items():
            expected = torch.cat([each[tap] for each in alone]).float()
            error = float((maps.float() - expected).norm() / expected.norm().clamp(min=1e-12))
            if not error <= tolerance:
                raise ConfigError(
                    f"{self.arch} gives other maps at {tap} when an image is in another batch (relative"
                    f" difference {error:.2g}): batch statistics or dropout are left on, or values are not"
                    " finite. Its features would not depend on the pixels alone."
                )

    def map_shape(self, tap: str, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of `tap` for images of `height` x `width` pixels. Raises ConfigError."""
        return self._shape(tap, self._image(height, width)).map_shape

    def _image(self, height: int, width: int) -> tuple[int, ...]:
        return (self.num_frames, height, width) if self.num_frames else (height, width)

    def _shape(self, tap: str, image: tuple[int, ...]) -> TapShape:
        return self._inspection.shape(
            tap, image, layout=self._declared.get(tap), class_token=self._class_token
        )

    def _settle(self, image: tuple[int, ...]) -> None:
        """Find the layouts of the taps for images of a shape, once."""
        if image not in self._layouts:
            self._layouts[image] = {tap: self._shape(tap, image).layout for tap in self.taps}
        self._trunk.layouts = self._layouts[image]


def _network(weights: Weights) -> nn.Module:
    if not is_own(weights.arch):
        return build_network(weights.arch, weights.arguments)
    if weights.own is None:
        raise ForeignCodeError(
            f"The weights are of {weights.arch}, code that the settings do not name: it is not imported."
        )
    return build_own(weights.own)


def _check_clips(arch: str, num_frames: int | None) -> None:
    """Raise ConfigError where a network for clips is to read images, or the reverse."""
    if arch not in ARCHS or ARCHS[arch].reads_clips == bool(num_frames):
        return
    if num_frames:
        raise ConfigError(f"{arch} reads images, not windows of {num_frames} frames.")
    raise ConfigError(f"{arch} reads windows of several frames at once, not images: set how many.")


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
    Like Pillow, resizing is antialiased (or not, as the preprocessing says), horizontal then vertical, and
    rounds to uint8 after each: equal to Pillow to one level (two when enlarging), and the same bits on every
    device. (Pillow 13 goes vertically first where that is cheaper; earlier ones never do.)

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
            x = crop_to(x, window)  # (T, 3, h, w)
        else:
            x = resize(
                x,
                size=size,
                window=window,
                interpolation=preprocessing.interpolation,
                antialias=preprocessing.antialias,
            )
        return (x.flip(3) if view.flip else x).contiguous(memory_format=torch.channels_last)

    # What is resized is larger than what is cropped from it, without bound for a narrow frame.
    num_at_once = max(1, _RESIZED_BYTES // (3 * max(height, size[0]) * max(width, size[1])))
    if len(x) <= num_at_once:
        return prepared(x)
    return torch.cat([prepared(x[i : i + num_at_once]) for i in range(0, len(x), num_at_once)])
