"""The networks of torchvision, cut at their taps. Structure alone: no pixels, no weights files.

`pipeline.settings.weights` says which networks and taps there are. What comes after the last tap (the
classifier) is never built.
"""

from copy import deepcopy
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.errors import ConfigError, WeightsError, listed
from pipeline.settings.weights import available_taps, check_taps

CLASSIFIERS = ("fc.", "classifier.")  # prefixes of the tensors that are no part of a trunk


def map_shape(arch: str, tap: str, *, height: int, width: int) -> tuple[int, int, int]:
    """(C, h, w) of a tap for images of `height` x `width` pixels; nothing is computed.

    Raises ConfigError for an unknown arch or tap, and for images too small for the tap.
    """
    check_taps(arch, [tap])
    x = torch.empty(1, 3, height, width, device="meta")
    for name, stage in split_into_stages(_network_of_shapes(arch)).items():
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
        for name, tensor in _network_of_shapes(arch).state_dict().items()
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
        raise WeightsError(
            f"The weights do not fit {arch}; choose the arch they were trained with.\n{listed(problems)}"
        )


def build_network(arch: str) -> nn.Module:
    """The frozen network, made by torchvision, without memory for its weights."""
    import torchvision  # imported here: it takes seconds, and only networks need it

    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(arch, weights=None)
    return network.eval().requires_grad_(False)


@cache
def _network_of_shapes(arch: str) -> nn.Module:
    """A network that is asked for shapes only, and made once."""
    return build_network(arch)


def fold_batchnorms(network: nn.Module) -> None:
    """Fold each BatchNorm, in eval mode, into the convolution before it, computing in float64.

    The network then gives the same maps, but for float32 rounding, with half of the passes over its
    activations.
    """
    for module in network.modules():
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                dtype = conv.weight.dtype
                # Copies: the state that the network was loaded with is not ours to change.
                folded = fuse_conv_bn_eval(deepcopy(conv).double(), deepcopy(norm).double()).to(dtype)
                setattr(module, conv_name, folded.requires_grad_(False))
                setattr(module, norm_name, nn.Identity())


def split_into_stages(network: nn.Module) -> dict[str, nn.Sequential]:
    """The trunk as {tap: the layers between the previous tap and this one}, shallow to deep."""
    from torchvision.models import ResNet

    if isinstance(network, ResNet):
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


def tail_module(
    arch: str, *, after: str, until: str, state: dict[str, Tensor] | None = None
) -> nn.Sequential:
    """The layers from the tap `after` to the tap `until`, trainable, in eval mode.

    The module takes maps (B, C, h, w) float32 of `after` and gives those of `until`. `state` has a trunk's
    weights (see `trunk_shapes`), which are copied; without it the weights are undefined until
    `load_state_dict`.

    Raises ConfigError for an unknown arch or tap, and when `until` is not deeper than `after`;
    WeightsError when the weights do not fit.
    """
    check_taps(arch, [after])
    deeper = available_taps(arch)[available_taps(arch).index(after) + 1 :]
    if until not in deeper:
        known = (
            f"Available: {', '.join(deeper)}" if deeper else f"{after} is the last tap: cache a shallower one"
        )
        raise ConfigError(f"The tail {until!r} does not come after the cached {after} of {arch}. {known}.")
    network = build_network(arch)
    if state is not None:
        check_state(arch, state)
        network.load_state_dict(
            {name: tensor.clone() for name, tensor in state.items()}, strict=False, assign=True
        )
    stages = split_into_stages(network)
    tail = nn.Sequential(*(stages[tap] for tap in deeper[: deeper.index(until) + 1]))
    if state is None:
        tail.to_empty(device="cpu")
    return tail.requires_grad_(True)
