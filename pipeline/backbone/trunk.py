"""The module from pixels to the maps of taps: a network that is run up to the deepest of them."""

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone.layouts import to_maps
from pipeline.backbone.passes import first_tensor
from pipeline.contract import Layout, Triple


class _DeepestTapError(Exception):
    """The deepest tap is computed: what comes after it is not."""


class _Catcher:
    """Forward hooks that keep what the taps' modules give."""

    def __init__(self, deepest: str) -> None:
        self.caught: dict[str, Tensor] = {}
        self._deepest = deepest

    def attach(self, name: str, module: nn.Module, *, clone: bool) -> None:
        """Keep the module's output; of one that is overwritten later, a `clone`."""
        stops = name == self._deepest

        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output if isinstance(output, Tensor) else first_tensor(output)
            if tensor is None:
                raise TypeError(f"{name} gives no tensor.")
            # An exported program is the whole pass: tracing can't be left in the middle.
            goes_on = not stops or torch.compiler.is_exporting()
            # What comes after the deepest tap then passes its output on, and may overwrite it.
            self.caught[name] = tensor.clone() if goes_on and (clone or stops) else tensor
            if not goes_on:
                raise _DeepestTapError

        module.register_forward_hook(hook)


class Trunk(nn.Module):
    """From pixels (B, 3, H, W) uint8, or of clips (B, 3, T, H, W), to the taps' maps (B, C, h, w).

    Normalisation is inside. `layouts` are those of the taps' modules for the images of the next call.
    """

    def __init__(
        self,
        network: nn.Module,
        modules: Mapping[str, str],
        *,
        overwritten: Sequence[str],
        deepest: str,
        mean: Triple,
        std: Triple,
        num_axes: int,
        dtype: torch.dtype,
        class_token: bool,
    ) -> None:
        """`modules` are {tap: its module}; `overwritten` those whose output changes later in a pass."""
        super().__init__()
        self.layouts: dict[str, Layout] = {}
        self._modules_of = dict(modules)
        self._dtype = dtype
        self._class_token = class_token
        self._network = network.to(dtype)
        self._catcher = _Catcher(deepest)
        for name in dict.fromkeys(modules.values()):
            self._catcher.attach(name, network.get_submodule(name), clone=name in overwritten)
        # (pixel / 255 - mean) / std in two steps
        self._mean = nn.Buffer(255 * torch.tensor(mean).view(3, *[1] * num_axes))
        self._std = nn.Buffer(255 * torch.tensor(std).view(3, *[1] * num_axes))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """The maps of each tap, in the order of the taps."""
        x = pixels.to(torch.float32).sub_(self._mean).div_(self._std).to(self._dtype)  # (B, 3, H, W)
        caught = self._catcher.caught
        caught.clear()
        with suppress(_DeepestTapError):
            self._network(x)
        return [
            to_maps(caught[module], self.layouts[tap], class_token=self._class_token)
            for tap, module in self._modules_of.items()
        ]


class _Through(nn.Module):
    """Gives back what it takes."""

    def forward(self, *inputs: Any) -> Any:
        return inputs[0] if len(inputs) == 1 else inputs


def prune(network: nn.Module, called: Sequence[str]) -> None:
    """Replace each module of a network that has not begun when the deepest tap is computed.

    `called` are the modules whose calls have ended by then.
    """
    begun = set(called)
    for name in called:
        parts = name.split(".")
        begun |= {".".join(parts[:count]) for count in range(1, len(parts))}
    _prune(network, begun, ended=set(called), inside="")


def _prune(module: nn.Module, begun: Set[str], *, ended: Set[str], inside: str) -> None:
    for child_name, child in list(module.named_children()):
        name = f"{inside}{child_name}"
        if name not in begun:
            module.set_submodule(child_name, _Through())
        elif name not in ended:
            _prune(child, begun, ended=ended, inside=f"{name}.")
