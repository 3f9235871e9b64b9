"""Each family's smallest network against torchvision's own modules, called by hand."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone import Backbone
from pipeline.backbone.inspection import HEADS
from pipeline.backbone.networks import build_network, fold_batchnorms, inspect_network, load_state
from pipeline.errors import ConfigError, ShapeError
from pipeline.settings.networks import ARCHS, FAMILIES, check_taps
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
    return {name: tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for name, tokens in maps.items()}


IMAGES: dict[str, tuple[ByHand, tuple[int, int]]] = {
    "alexnet": (by_features, (64, 96)),
    "convnext_tiny": (by_features, (64, 64)),
    "densenet121": (by_features, (64, 64)),
    "efficientnet_b0": (by_features, (64, 96)),
    "googlenet": (by_children, (64, 64)),
    "inception_v3": (by_children, (139, 139)),
    "maxvit_t": (by_children, (224, 224)),
    "mnasnet0_5": (by_layers, (64, 64)),
    "mobilenet_v2": (by_features, (64, 64)),
    "mobilenet_v3_small": (by_features, (64, 64)),
    "regnet_y_400mf": (by_regnet, (64, 96)),
    "resnet18": (by_resnet, (64, 64)),
    "shufflenet_v2_x0_5": (by_children, (64, 64)),
    "squeezenet1_1": (by_features, (64, 64)),
    "swin_t": (by_swin, (64, 96)),
    "swin_v2_t": (by_swin, (64, 64)),
    "vgg11_bn": (by_vgg, (64, 64)),
    "vit_b_16": (by_vit, (64, 64)),
}


QUICK = ("resnet18", "mobilenet_v3_small", "swin_t", "vit_b_16")


@pytest.mark.parametrize(
    "arch", [arch if arch in QUICK else pytest.param(arch, marks=pytest.mark.slow) for arch in IMAGES]
)
def test_taps_equal_torchvisions_modules_called_by_hand_bit_for_bit(arch: str) -> None:
    by_hand, size = IMAGES[arch]
    weights = made_up_weights(arch, **({"image_size": size[0]} if arch.startswith("vit") else {}))
    taps, pixels = ARCHS[arch].taps, pixels_of(*size)
    backbone = Backbone(weights, taps=taps, device=CPU, crop=size)
    together = backbone(pixels)
    assert {tap: backbone.map_shape(tap, *size) for tap in taps} == {
        tap: tuple(maps.shape[1:]) for tap, maps in together.items()
    }
    middle = taps[len(taps) // 2]
    alone = Backbone(weights, taps=[middle], device=CPU, crop=size)(pixels)
    assert torch.equal(alone[middle], together[middle])

    network = build_network(arch, weights.arguments)
    pairs = inspect_network(arch, weights.arguments).foldable(size)
    load_state(network, weights.state)
    mean, std = (255 * torch.tensor(of).view(3, 1, 1) for of in (weights.mean, weights.std))
    with torch.no_grad():
        x = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        unfolded = by_hand(prepared(network), x)
        fold_batchnorms(network, pairs)
        folded = by_hand(prepared(network), x)
    for tap, maps in together.items():
        assert torch.equal(maps, folded[tap]), tap
        error = (folded[tap] - unfolded[tap]).norm() / unfolded[tap].norm()
        assert error < 1e-4, tap


def prepared(network: nn.Module) -> nn.Module:
    """Without what has no weights, in the memory format of images."""
    for name, child in list(network.named_children()):
        if any(parameter.is_meta for parameter in child.parameters()):
            network.set_submodule(name, nn.Identity())
    return network.to(memory_format=torch.channels_last)


# Clips


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


@pytest.mark.parametrize(
    ("arch", "by_hand", "size", "taps"),
    [
        ("r3d_18", by_resnet, (8, 48, 48), ("layer2", "avgpool")),
        pytest.param("mvit_v2_s", by_mvit, (16, 224, 224), ARCHS["mvit_v2_s"].taps, marks=pytest.mark.slow),
        pytest.param("s3d", by_features, (16, 64, 64), ARCHS["s3d"].taps[:-1], marks=pytest.mark.slow),
        pytest.param("swin3d_t", by_swin3d, (8, 64, 64), ARCHS["swin3d_t"].taps, marks=pytest.mark.slow),
    ],
)
def test_a_clip_networks_maps_are_means_over_the_time_that_is_left(
    arch: str, by_hand: ByHand, size: tuple[int, int, int], taps: tuple[str, ...]
) -> None:
    weights, pixels = made_up_weights(arch), pixels_of(*size)[:1]
    maps = Backbone(weights, taps=taps, device=CPU, crop=size[1:], num_frames=size[0])(pixels)
    network = build_network(arch)
    load_state(network, weights.state)
    if arch == "s3d":
        network.avgpool = nn.Identity()  # it needs 224 pixels
    x = pixels.float() / 255 - torch.tensor(weights.mean).view(3, 1, 1, 1)
    with torch.no_grad():
        expected = by_hand(network, x / torch.tensor(weights.std).view(3, 1, 1, 1))
    assert maps.keys() == {*taps}
    for tap in taps:
        error = (maps[tap] - expected[tap].mean(dim=2)).norm() / expected[tap].mean(dim=2).norm()
        assert error < 1e-5, tap


@pytest.mark.parametrize(
    ("arch", "layouts"),
    [
        ("mvit_v2_s", ["1+8x56x56", "1+8x28x28", "1+8x14x14", "1+8x7x7"]),
        ("s3d", ["cthw"] * 6),
        ("swin3d_t", ["thwc", "thwc", "thwc", "thwc", "cthw"]),
        ("r2plus1d_18", ["cthw"] * 5),
    ],
)
def test_layouts_of_clip_networks_are_told_by_shapes(arch: str, layouts: list[str]) -> None:
    inspection = inspect_network(arch)
    assert [inspection.shape(tap, (16, 224, 224)).layout for tap in ARCHS[arch].taps] == layouts


def test_networks_of_images_and_of_clips_are_not_taken_for_each_other() -> None:
    weights = made_up_weights("r3d_18")
    with pytest.raises(ConfigError, match="r3d_18 reads windows of several frames"):
        Backbone(weights, taps=["layer1"], device=CPU)
    with pytest.raises(ConfigError, match="resnet18 reads images, not windows of 8 frames"):
        Backbone(made_up_weights("resnet18"), taps=["layer1"], device=CPU, num_frames=8)
    backbone = Backbone(weights, taps=["layer1"], device=CPU, crop=(32, 32), num_frames=8)
    with pytest.raises(ShapeError, match=r"\(2, 3, 4, 32, 32\), but r3d_18 reads \(B, 3, 8, H, W\)"):
        backbone(pixels_of(4, 32, 32))


# Taps


def test_every_network_of_torchvision_is_in_a_family() -> None:
    import torchvision

    models = torchvision.models
    images, clips = (set(models.list_models(module=module)) for module in (models, models.video))
    assert set(ARCHS) == images | clips
    assert {arch for arch, family in ARCHS.items() if family.reads_clips} == clips
    assert sum(len(family.archs) for family in FAMILIES.values()) == len(ARCHS)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outermost_modules_of_a_family_are_those_of_its_network(family: str) -> None:
    modules, arch = FAMILIES[family].modules, FAMILIES[family].archs[0]
    inspection = inspect_network(arch)
    names = dict(inspection.network.named_modules())
    assert [name for name in modules if name not in names] == []
    size = (16, 224, 224) if FAMILIES[family].reads_clips else (224, 224)
    called = {call.name for call in inspection.watched(size).calls if call.name}
    assert {name.partition(".")[0] for name in called} - {*HEADS} <= {*modules}
    check_taps(arch, FAMILIES[family].taps)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["densenet121", "efficientnet_b0", "r2plus1d_18"])
def test_every_module_that_is_listed_as_a_tap_has_its_own_values(arch: str) -> None:
    size = (8, 32, 32) if ARCHS[arch].reads_clips else (64, 64)
    weights, pixels = made_up_weights(arch), pixels_of(*size)
    taps = inspect_network(arch).candidates(size)
    num_frames = size[0] if ARCHS[arch].reads_clips else None
    maps = Backbone(weights, taps=taps, device=CPU, crop=size[-2:], num_frames=num_frames)(pixels)
    network = build_network(arch)
    load_state(network, weights.state)
    expected = {}

    def keep(tap: str) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: expected.update({tap: output.clone()})  # ReLUs in place

    for tap in taps:
        network.get_submodule(tap).register_forward_hook(keep(tap))
    mean, std = (torch.tensor(of).view(3, *[1] * len(size)) for of in (weights.mean, weights.std))
    with torch.no_grad(), suppress(RuntimeError):  # the classifier has no weights
        network((pixels / 255 - mean) / std)
    assert len(taps) > 100
    for tap in taps:
        own = expected[tap].mean(dim=2) if num_frames else expected[tap]
        assert (maps[tap] - own).norm() < 1e-5 * own.norm(), tap


@pytest.mark.parametrize(
    ("arch", "tap", "reason"),
    [
        ("resnet18", "layer1.0.relu", r"a pass calls this module 2 times"),
        ("resnet18", "conv1", r"bn1, its BatchNorm, is folded into it: take bn1"),
        ("r2plus1d_18", "layer1.0.conv1.0", r"layer1\.0\.conv1\.1, its BatchNorm, is folded into it: take"),
        ("resnet18", "layer1.7", r"Unknown tap .* Available inside of layer1: 0, 1\."),
        ("vit_b_16", "encoder.layers.encoder_layer_0.self_attention.out_proj", r"does not call this module"),
        ("vit_b_16", "heads.head", r"Unknown tap"),
        ("vgg11", "block6", r"Unknown tap 'block6' for vgg11. Available: block1, .* or any module"),
    ],
)
def test_what_can_be_no_tap_is_refused_with_the_reason(arch: str, tap: str, reason: str) -> None:
    weights = made_up_weights(arch)
    num_frames = 8 if ARCHS[arch].reads_clips else None
    with pytest.raises(ConfigError, match=reason):
        Backbone(weights, taps=[tap], device=CPU, num_frames=num_frames)


def test_the_class_token_is_taken_instead_of_maps() -> None:
    weights, pixels = made_up_weights("vit_b_16", image_size=32), pixels_of(32, 32)
    options = {"taps": ["encoder"], "device": CPU, "crop": (32, 32)}
    with pytest.raises(ConfigError, match=r"can't be told from its shape, \(5, 768\).* 1\+2x2, 4\+1x1"):
        Backbone(weights, **options)
    declared = {"encoder": "1+2x2"}
    maps = Backbone(weights, **options, layouts=declared)(pixels)["encoder"]
    token = Backbone(weights, **options, layouts=declared, class_token=True)(pixels)["encoder"]
    assert (maps.shape, token.shape) == ((2, 768, 2, 2), (2, 768, 1, 1))
    with pytest.raises(ConfigError, match=r"The layout '1\+3x3' of 'encoder' does not fit its shape"):
        Backbone(weights, **options, layouts={"encoder": "1+3x3"})
    with pytest.raises(ConfigError, match=r"layer1.* has the layout chw by its shape, .* and not hwc"):
        inspect_network("resnet18").shape("layer1", (32, 32), layout="hwc")
    with pytest.raises(ConfigError, match=r"layer1.* has no class token: its layout is chw"):
        Backbone(made_up_weights("resnet18"), taps=["layer1"], device=CPU, crop=(32, 32), class_token=True)


def test_a_vit_reads_images_of_the_size_that_it_is_built_for() -> None:
    weights = made_up_weights("vit_b_16", image_size=32)
    with pytest.raises(ConfigError, match=r"of images of 64x64 pixels: Wrong image height! Expected 32 but"):
        Backbone(weights, taps=["encoder"], device=CPU, crop=(64, 64))
