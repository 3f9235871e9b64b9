"""Each family's smallest network against torchvision's own modules, called by hand."""

from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone import Backbone
from pipeline.backbone.inspection import HEADS
from pipeline.backbone.networks import build_network, inspect_network, load_state
from pipeline.errors import ConfigError, ShapeError
from pipeline.settings.networks import ARCHS, FAMILIES, check_taps
from tests.support.by_hand import CPU, opened, pixels_of, suggested_taps, tapped
from tests.support.networks import made_up_weights

QUICK = ("resnet18", "mobilenet_v3_small", "swin_t", "vit_b_16")
# Of each family, and of each kind of block that only some of its networks have.
SMALLEST = (
    *QUICK,
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "regnet_y_400mf",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_v2_t",
    "vgg11_bn",
    "mvit_v2_s",
    "r3d_18",
    "s3d",
    "swin3d_t",
)


EACH = [arch if arch in QUICK else pytest.param(arch, marks=pytest.mark.slow) for arch in SMALLEST]


@pytest.mark.parametrize("arch", EACH)
def test_taps_equal_torchvisions_modules_called_by_hand_bit_for_bit(arch: str) -> None:
    """But for means over the time of windows, which may be summed in another order."""
    for tap, (maps, folded, unfolded) in tapped(arch).items():
        if ARCHS[arch].reads_clips:
            assert (maps - folded).norm() < 1e-6 * folded.norm(), tap
        else:
            assert torch.equal(maps, folded), tap
        assert (folded - unfolded).norm() < 1e-4 * unfolded.norm(), tap


@pytest.mark.parametrize("arch", EACH)
def test_a_tap_alone_has_the_values_that_it_has_beside_others(arch: str) -> None:
    taps = suggested_taps(arch)
    backbone, _, pixels = opened(arch, taps)
    together = backbone(pixels)
    height, width = pixels.shape[-2:]
    assert {tap: backbone.map_shape(tap, height, width) for tap in taps} == {
        tap: tuple(maps.shape[1:]) for tap, maps in together.items()
    }
    middle = taps[len(taps) // 2]
    alone, _, _ = opened(arch, [middle])
    assert torch.equal(alone(pixels)[middle], together[middle])


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
