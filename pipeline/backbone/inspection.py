"""What passes without values show of a network: its taps, their layouts and shapes, what can be folded."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbone.layouts import (
    fits_layout,
    possible_layouts,
    to_maps,
    tokens_in_front,
    told_layout,
)
from pipeline.backbone.passes import Call, Pass, first_tensor, watch_pass
from pipeline.contract import Layout
from pipeline.errors import ConfigError
from pipeline.settings.networks import is_own

HEADS = (
    "fc",
    "classifier",
    "head",
    "heads",
    "AuxLogits",
    "aux1",
    "aux2",
)  # of torchvision: no part of a trunk


@dataclass(frozen=True)
class TapShape:
    """The layout of a tap's module, and the shape of its maps."""

    layout: Layout
    map_shape: tuple[int, int, int]  # (C, h, w)


class Inspection:
    """A network, looked into by passes of empty images. It keeps a copy: the network may change afterwards.

    Attributes: arch, and network: the copy, which has values only if the network is one's own. Images have a
    shape (H, W), clips (T, H, W).
    """

    def __init__(self, network: nn.Module, arch: str) -> None:
        self.arch = arch
        # Code that is not torchvision's may need values.
        self._device = torch.device("cpu" if is_own(arch) else "meta")
        self.network = deepcopy(network).to(self._device).eval()
        self._passes: dict[tuple[int, ...], Pass] = {}

    @cached_property
    def aliases(self) -> dict[str, str]:
        """{tap: the module that it names} of taps with names of our own: VGG's max-pools."""
        if not self.arch.startswith("vgg"):
            return {}
        layers = self.network.get_submodule("features").named_children()
        pools = [name for name, layer in layers if isinstance(layer, nn.MaxPool2d)]
        return {f"block{number}": f"features.{name}" for number, name in enumerate(pools, start=1)}

    def watched(self, image: tuple[int, ...]) -> Pass:
        """The pass of images of a shape."""
        if image not in self._passes:
            images = torch.zeros(2, 3, *image, device=self._device)
            self._passes[image] = watch_pass(self.network, images)
        return self._passes[image]

    def call(self, tap: str, image: tuple[int, ...]) -> Call:
        """The one call of a tap's module. Raises ConfigError for what can't be a tap, and says why."""
        name = self.aliases.get(tap, tap)
        self._check_name(tap, name)
        watched = self.watched(image)
        found = watched.find(name)
        if found is None and watched.error:
            what = "the crop" if len(image) == 2 else "the crop or the frames of a window"
            raise ConfigError(
                f"{self.arch} can't compute {tap} of images of {_size_text(image)} pixels: {watched.reason}."
                f" Change {what}."
            ) from watched.error
        reason = self.why_no_tap(name, image)
        if found is None or reason:
            raise ConfigError(f"{tap!r} can't be a tap of {self.arch}: {reason}.")
        return found

    def _check_name(self, tap: str, name: str) -> None:
        modules = dict(self.network.named_modules())
        if self._is_head(name):
            raise ConfigError(f"{tap!r} can't be a tap of {self.arch}: its weights file has no classifier.")
        if name and name in modules:
            return
        parent = name
        while parent not in modules:
            parent = parent.rpartition(".")[0]
        inside = [child for child, _ in modules[parent].named_children() if parent or child not in HEADS]
        where = f"inside of {parent}" if parent else "outermost"
        raise ConfigError(
            f"Unknown tap {tap!r} for {self.arch}. Available {where}: {', '.join(inside) or 'nothing'}."
        )

    def why_no_tap(self, name: str, image: tuple[int, ...]) -> str | None:
        """Why a module's output can't be taken, for the end of a sentence; None if it can."""
        watched = self.watched(image)
        found = watched.find(name)
        if found is None:
            return "a pass does not call this module"
        if watched.num_calls[name] > 1:
            return f"a pass calls this module {watched.num_calls[name]} times"
        if found.tensor is None or len(found.tensor.shape) < 2 or len(found.tensor) != 2:
            return "it gives no tensor with an image in each row"
        pairs = self.foldable(image)
        # A module around a convolution, such as R(2+1)D's Conv2Plus1D, may give the convolution's own output.
        folded = {id(call.output): pairs[call.name] for call in watched.calls if call.name in pairs}
        if norm := folded.get(id(found.tensor)):
            return f"{norm}, its BatchNorm, is folded into it: take {norm}"
        return None

    def candidates(self, image: tuple[int, ...]) -> list[str]:
        """The modules that can be taps, in the order in which a pass computes them."""
        names = [call.name for call in self.watched(image).calls if call.name]
        return [
            name
            for name in dict.fromkeys(names)
            if not self._is_head(name) and not self.why_no_tap(name, image)
        ]

    def macs(self, image: tuple[int, ...]) -> dict[str, int]:
        """{module: the multiplications of one image's pass up to the module's end}."""
        counter, found = FlopCounterMode(display=False), dict[str, int]()

        def note(name: str) -> Callable[..., None]:
            return lambda *_: found.update({name: counter.get_total_flops() // 2})

        handles = [module.register_forward_hook(note(name)) for name, module in self.network.named_modules()]
        try:
            with torch.no_grad(), counter:
                self.network(torch.zeros(1, 3, *image, device=self._device))
        finally:
            for handle in handles:
                handle.remove()
        return found

    def num_parameters(self) -> int:
        """The parameters of the network without torchvision's classifier."""
        return sum(
            parameter.numel()
            for name, parameter in self.network.named_parameters()
            if not self._is_head(name)
        )

    def kind(self, name: str) -> str:
        """The class of a module."""
        return type(self.network.get_submodule(name)).__name__

    def _is_head(self, name: str) -> bool:
        return name.partition(".")[0] in HEADS and not is_own(self.arch)

    def possible_layouts(self, name: str, image: tuple[int, ...]) -> list[Layout]:
        """The layouts that a module's output may have: one, unless shapes do not tell."""
        found = self.watched(image).find(name)
        if found is None or found.tensor is None:
            return []
        shape = tuple(found.tensor.shape[1:])
        if told := told_layout(found.output, shape):
            return [told]
        possible = possible_layouts(shape, image)
        if len(possible) > 1 and len(shape) == len(image) + 1:
            # In images that are wider, only the axis of the width is longer.
            other = self.watched((*image[:-1], 2 * image[-1])).find(name)
            if other is not None and other.tensor is not None:
                longer = [a != b for a, b in zip(shape, other.tensor.shape[1:], strict=False)]
                possible = [
                    layout for layout in possible if longer == [axis == "w" for axis in layout]
                ] or possible
        return possible

    def shape(
        self, tap: str, image: tuple[int, ...], *, layout: Layout | None = None, class_token: bool = False
    ) -> TapShape:
        """A tap's layout, declared or by its shape, and the shape of its maps for images of a shape.

        Raises ConfigError for what can't be a tap, for a layout that shapes do not tell and nobody declares,
        for one that is declared and impossible, and for a class token of a tap that has none.
        """
        call = self.call(tap, image)
        tensor = first_tensor(call.output)
        if tensor is None:
            raise ConfigError(f"{tap!r} of {self.arch} gives no tensor.")
        output = tuple(tensor.shape[1:])
        possible = self.possible_layouts(call.name, image)
        if layout is None:
            if len(possible) != 1:
                choices = f" It may be one of {', '.join(possible)}." if possible else ""
                raise ConfigError(
                    f"The layout of {tap!r} of {self.arch} can't be told from its shape, {output} for images"
                    f" of {_size_text(image)} pixels. Declare it in layouts, or take another tap.{choices}"
                )
            (layout,) = possible
        elif not fits_layout(output, layout):
            raise ConfigError(f"The layout {layout!r} of {tap!r} does not fit its shape, {output}.")
        elif layout.isalpha() and possible and layout not in possible:
            raise ConfigError(
                f"{tap!r} of {self.arch} has the layout {' or '.join(possible)} by its shape, {output} for"
                f" images of {_size_text(image)} pixels, and not {layout}, as declared. Leave that out."
            )
        if class_token and not tokens_in_front(layout):
            raise ConfigError(
                f"{tap!r} of {self.arch} has no class token: its layout is {layout}. Choose another pooling."
            )
        _, channels, height, width = to_maps(
            torch.empty(tensor.shape, device="meta"), layout, class_token=class_token
        ).shape
        return TapShape(layout, (channels, height, width))

    def foldable(self, image: tuple[int, ...]) -> dict[str, str]:
        """{convolution: BatchNorm} of all pairs that are one linear map: by the flow of data.

        The convolution's output goes to this BatchNorm and nowhere else. Where other code than torch's may
        look at the modules (a subclass, a hook, a parametrisation), nothing is folded.
        """
        watched = self.watched(image)
        modules = dict(self.network.named_modules())
        giver = {
            id(call.output): call.name for call in watched.calls if _is_plain(modules[call.name], _CONVS)
        }
        pairs = {}
        for call in watched.calls:
            taken = id(call.inputs[0]) if len(call.inputs) == 1 else None
            if taken not in giver or not _is_plain(modules[call.name], _NORMS):
                continue
            conv = giver[taken]
            once = watched.num_calls[conv] == watched.num_calls[call.name] == watched.num_uses[taken] == 1
            if once and getattr(modules[call.name], "running_mean", None) is not None:
                pairs[conv] = call.name
        return pairs


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _is_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module computes what torch's class of one of these kinds does."""
    return (
        any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)
        and not parametrize.is_parametrized(module)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _size_text(image: tuple[int, ...]) -> str:
    return "x".join(map(str, image))
