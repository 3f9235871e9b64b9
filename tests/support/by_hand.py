"""Torchvision's networks called module by module: what taps are compared with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.backbone import Backbone, Weights
from pipeline.backbone.networks import build_network, fold_batchnorms, inspect_network, load_state
from pipeline.settings.networks import ARCHS, FAMILIES
from tests.support.networks import made_up_weights

CPU = torch.device("cpu")
ByHand = Callable[[nn.Module, Tensor], dict[str, Tensor]]


def pixels_of(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8, generator=generator)


def by_features(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    maps = {}
    for name, layer in network.features.named_children():
        x = maps[f"features.{name}"] = layer(x).clone()  # ReLUs in place
    return {**maps, "features": x, "avgpool": network.avgpool(x) if hasattr(network, "avgpool") else x}


def by_resnet(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = n.stem(x) if hasattr(n, "stem") else n.maxpool(n.relu(n.bn1(n.conv1(x))))
    maps = {}
    for name in ("layer1", "layer2", "layer3", "layer4", "avgpool"):
        x = maps[name] = getattr(n, name)(x)
    return maps


def by_vgg(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    maps = {}
    for layer in n.features:
        x = layer(x)
        if isinstance(layer, nn.MaxPool2d):
            maps[f"block{len(maps) + 1}"] = x
    return maps


def by_children(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Networks whose forward pass is their children in turn, up to the classifier."""
    maps = {}
    for name, child in n.named_children():
        if name in ("AuxLogits", "aux1", "aux2", "dropout", "fc", "classifier"):
            continue
        if isinstance(child, nn.ModuleList):
            for number, block in enumerate(child):
                x = maps[f"{name}.{number}"] = block(x)
        else:
            x = maps[name] = child(x)
    return maps


def by_layers(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    maps = {}
    for number, layer in enumerate(n.layers):
        x = maps[f"layers.{number}"] = layer(x).clone()
    return {**maps, "layers": x}


def by_regnet(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    x = n.stem(x)
    maps = {}
    for name, block in n.trunk_output.named_children():
        x = maps[f"trunk_output.{name}"] = block(x)
    return {**maps, "avgpool": n.avgpool(x)}


def by_swin(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Swin's stages are (B, H, W, C)."""
    maps = {}
    for number, stage in enumerate(n.features):
        x = stage(x)
        maps[f"features.{number}"] = x.permute(0, 3, 1, 2)
    x = maps["permute"] = n.norm(x).permute(0, 3, 1, 2)
    return {**maps, "avgpool": n.avgpool(x)}


def by_vit(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Tokens are the class token, then the patches row by row."""
    x = n.conv_proj(x).flatten(2).transpose(1, 2)
    x = torch.cat([n.class_token.expand(len(x), -1, -1), x], dim=1) + n.encoder.pos_embedding
    maps = {}
    for name, layer in n.encoder.layers.named_children():
        x = layer(x)
        maps[f"encoder.layers.{name}"] = x
    maps["encoder"] = n.encoder.ln(x)
    grid = (n.image_size // n.patch_size,) * 2
    return {name: tokens[:, 1:].transpose(1, 2).unflatten(2, grid) for name, tokens in maps.items()}


def by_mvit(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Tokens are the class token, then the patches of the first frame row by row, then of the next."""
    x = n.pos_encoding(n.conv_proj(x).flatten(2).transpose(1, 2))
    thw, maps = (n.pos_encoding.temporal_size, *n.pos_encoding.spatial_size), {}
    for number, block in enumerate(n.blocks):
        x, thw = block(x, thw)
        maps[f"blocks.{number}"] = x[:, 1:].transpose(1, 2).unflatten(2, thw)
    return maps


def by_swin3d(n: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Swin's stages are (B, T, H, W, C)."""
    x = n.patch_embed(x)
    maps = {}
    for number, stage in enumerate(n.features):
        x = stage(x)
        maps[f"features.{number}"] = x.permute(0, 4, 1, 2, 3)
    x = maps["norm"] = n.norm(x).permute(0, 4, 1, 2, 3)
    return {**maps, "avgpool": n.avgpool(x)}


# Of each family: how its networks are called by hand, and the size of an image, or of a window.
BY_HAND: dict[str, tuple[ByHand, tuple[int, ...]]] = {
    "AlexNet": (by_features, (64, 96)),
    "ConvNeXt": (by_features, (64, 64)),
    "DenseNet": (by_features, (64, 64)),
    "EfficientNet": (by_features, (64, 96)),
    "GoogLeNet": (by_children, (64, 64)),
    "Inception v3": (by_children, (139, 139)),
    "MaxVit": (by_children, (224, 224)),
    "MNASNet": (by_layers, (64, 64)),
    "MobileNet v2": (by_features, (64, 64)),
    "MobileNet v3 small": (by_features, (64, 64)),
    "MobileNet v3 large": (by_features, (64, 64)),
    "RegNet": (by_regnet, (64, 96)),
    "ResNet": (by_resnet, (64, 64)),
    "ShuffleNet v2": (by_children, (64, 64)),
    "SqueezeNet 1.0": (by_features, (64, 64)),
    "SqueezeNet 1.1": (by_features, (64, 64)),
    "Swin": (by_swin, (64, 96)),
    "VGG": (by_vgg, (64, 64)),
    "ViT base": (by_vit, (128, 128)),
    "ViT large": (by_vit, (128, 128)),
    "ViT huge": (by_vit, (112, 112)),
    "MViT": (by_mvit, (16, 224, 224)),
    "S3D": (by_features, (16, 64, 64)),
    "Swin 3D": (by_swin3d, (8, 64, 64)),
    "Video ResNet": (by_resnet, (8, 48, 48)),
}


def suggested_taps(arch: str) -> list[str]:
    """The suggested taps of a network; S3D's avgpool needs images of 224 pixels."""
    return [tap for tap in ARCHS[arch].taps if (arch, tap) != ("s3d", "avgpool")]


def opened(arch: str, taps: list[str]) -> tuple[Backbone, Weights, Tensor]:
    """A network on the CPU, its made-up weights, and random pixels (2, 3, ...) that it reads."""
    size = _by_hand(arch)[1]
    weights = made_up_weights(arch, **({"image_size": size[0]} if arch.startswith("vit") else {}))
    num_frames = size[0] if ARCHS[arch].reads_clips else None
    backbone = Backbone(weights, taps=taps, device=CPU, crop=size[-2:], num_frames=num_frames)
    return backbone, weights, pixels_of(*size)


def _by_hand(arch: str) -> tuple[ByHand, tuple[int, ...]]:
    return BY_HAND[next(name for name, family in FAMILIES.items() if arch in family.archs)]


def tapped(arch: str) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Maps of a network at its suggested taps, with made-up weights, on random pixels.

    Of each tap: the backbone's maps (N, C, H, W); those of the network by hand, with its BatchNorms folded as
    the backbone folds them; and those of the network as it is. Maps of windows are means over time.
    """
    (by_hand, size), taps = _by_hand(arch), suggested_taps(arch)
    backbone, weights, pixels = opened(arch, taps)
    num_frames, maps = backbone.num_frames, backbone(pixels)
    network = build_network(arch, weights.arguments)
    pairs = inspect_network(arch, weights.arguments).foldable(size)
    load_state(network, weights.state)
    if arch == "s3d":
        network.avgpool = nn.Identity()
    mean, std = (255 * torch.tensor(of).view(3, *[1] * len(size)) for of in (weights.mean, weights.std))
    with torch.no_grad():
        memory_format = torch.contiguous_format if num_frames else torch.channels_last
        x = ((pixels - mean) / std).contiguous(memory_format=memory_format)
        unfolded = by_hand(without_head(network).to(memory_format=memory_format), x)
        fold_batchnorms(network, pairs)
        folded = by_hand(network.to(memory_format=memory_format), x)
    if num_frames:
        folded, unfolded = ({tap: of[tap].mean(dim=2) for tap in taps} for of in (folded, unfolded))
    return {tap: (maps[tap], folded[tap], unfolded[tap]) for tap in taps}


def without_head(network: nn.Module) -> nn.Module:
    """The network without what has no weights, in place."""
    for name, child in list(network.named_children()):
        if any(parameter.is_meta for parameter in child.parameters()):
            network.set_submodule(name, nn.Identity())
    return network
