"""Networks as torchvision or the user's code builds them: without a trained state, or to be given one.

The classifier is no part of a trunk: its tensors are in no weights file, and it never runs.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.backbone.inspection import HEADS, Inspection
from pipeline.errors import ConfigError, WeightsError, listed
from pipeline.settings.networks import check_taps, is_own
from pipeline.system.own_code import OwnCode

# What torchvision's functions need to build the network that its weights were trained for, without a warning.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}


def build_own(own: OwnCode) -> nn.Module:
    """The frozen network that the user's own function builds. Raises ConfigError where it builds none."""
    build = own.load()
    try:
        network = build(**own.arguments)
    except TypeError as error:
        raise ConfigError(f"{own.name} can't be called with {dict(own.arguments)}: {error}.") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{own.name} gives a {type(network).__name__}, not a torch.nn.Module.")
    return network.eval().requires_grad_(False)


def build_network(arch: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The frozen network, made by torchvision, without memory for its weights. Raises ConfigError."""
    with _weightless():
        return build_with_weights(arch, arguments)


def build_with_weights(arch: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """The frozen network, made by torchvision, with random weights. Raises ConfigError."""
    import torchvision  # imported here: it takes seconds, and only networks need it

    given = {**_ARGUMENTS.get(arch, {}), **_as_tuples(arguments or {})}
    try:
        network: nn.Module = torchvision.models.get_model(arch, weights=None, **given)
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{arch} can't be built with the arguments {dict(arguments or {})}: {error}."
        ) from None
    return network.eval().requires_grad_(False)


def _as_tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments from YAML or JSON, where sequences are lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}


@contextmanager
def _weightless() -> Iterator[None]:
    """Parameters of modules that are built have no memory and are not initialised; buffers are computed."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def default_size(network: nn.Module) -> tuple[int, int]:
    """(height, width) of the images that a network is built for: 224 for most."""
    side = getattr(network, "image_size", 224)  # ViT's
    return side, side


def inspect_network(arch: str, arguments: Mapping[str, Any] | None = None) -> Inspection:
    """A look into a network of torchvision; the same object for the same network."""
    return _inspection(arch, json.dumps(dict(arguments or {}), sort_keys=True))


@lru_cache(maxsize=8)
def _inspection(arch: str, arguments: str) -> Inspection:
    return Inspection(build_network(arch, json.loads(arguments)), arch)


def map_shape(arch: str, tap: str, *, height: int, width: int) -> tuple[int, int, int]:
    """(C, h, w) of a tap for images of `height` x `width` pixels; nothing is computed.

    Raises ConfigError for an unknown arch or tap, and for images too small for the tap.
    """
    check_taps(arch, [tap])
    return inspect_network(arch).shape(tap, (height, width)).map_shape


def trunk_state(state: Mapping[str, Tensor], arch: str = "") -> dict[str, Tensor]:
    """The tensors of a state that belong to a trunk: of torchvision's networks all but the classifier's.

    Without `num_batches_tracked`, which no frozen network reads and old weights files lack.
    """
    return {
        name: tensor
        for name, tensor in state.items()
        if (is_own(arch) or name.partition(".")[0] not in HEADS) and not name.endswith("num_batches_tracked")
    }


def check_state(arch: str, state: Mapping[str, Tensor], network: nn.Module) -> None:
    """Raise WeightsError listing every missing, unexpected or wrongly shaped tensor of a network's state."""
    expected = trunk_state(network.state_dict(), arch)
    problems = [f"missing {name}" for name in expected if name not in state]
    problems += [f"unexpected {name}" for name in state if name not in expected]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise WeightsError(
            f"The weights do not fit {arch}; choose the arch they were trained with.\n{listed(problems)}"
        )


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network the tensors of a state that fits it; they are not copied."""
    tensors = dict(state)
    versioned: Any = type(network.state_dict())(tensors)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]  # MNASNet reads versions
    network.load_state_dict(versioned, strict=False, assign=True)


def fold_batchnorms(network: nn.Module, pairs: Mapping[str, str]) -> None:
    """Fold each BatchNorm, in eval mode, into the convolution before it, computing in float64.

    `pairs` are {convolution: BatchNorm}, by `Inspection.foldable`. The network then gives the same maps, but
    for float32 rounding, with half of the passes over its activations.
    """
    for conv_name, norm_name in pairs.items():
        conv: Any = network.get_submodule(conv_name)
        norm: Any = network.get_submodule(norm_name)
        dtype = conv.weight.dtype
        # Copies: the state that the network was loaded with is not ours to change.
        folded = fuse_conv_bn_eval(deepcopy(conv).double(), deepcopy(norm).double()).to(dtype)
        network.set_submodule(conv_name, folded.requires_grad_(False))
        network.set_submodule(norm_name, nn.Identity())
