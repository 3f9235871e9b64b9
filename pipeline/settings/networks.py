"""Which networks there are by name, and the taps that are suggested for each: facts about torchvision.

A tap is a named point of a network at which feature maps are taken. Any module that a pass runs once can be
one, by its dotted name, such as layer3.0.conv2. Suggested are those behind which the maps get smaller. VGG's
block1 .. block5 are names of our own: the output of each block's max-pool.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError

_FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


@dataclass(frozen=True)
class Family:
    """Networks of one make."""

    archs: tuple[str, ...]
    taps: tuple[str, ...]  # suggested, shallow to deep
    modules: tuple[str, ...]  # the outermost ones without the classifier: each tap is one, or inside one
    reads_clips: bool = False  # frames of a window at once, not single images


def _family(archs: str, *, taps: str, modules: str, reads_clips: bool = False) -> Family:
    return Family(tuple(archs.split()), tuple(taps.split()), tuple(modules.split()), reads_clips)


FAMILIES: dict[str, Family] = {
    "AlexNet": _family(
        "alexnet",
        taps="features.1 features.4 features.11 features",
        modules="features avgpool",
    ),
    "ConvNeXt": _family(
        "convnext_tiny convnext_small convnext_base convnext_large",
        taps="features.1 features.3 features.5 features.7 avgpool",
        modules="features avgpool",
    ),
    "DenseNet": _family(
        "densenet121 densenet161 densenet169 densenet201",
        taps="features.denseblock1 features.denseblock2 features.denseblock3 features",
        modules="features",
    ),
    "EfficientNet": _family(
        "efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5"
        " efficientnet_b6 efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l",
        taps="features.1 features.2 features.3 features.5 features avgpool",
        modules="features avgpool",
    ),
    "GoogLeNet": _family(
        "googlenet",
        taps="conv1 conv3 inception3b inception4e inception5b avgpool",
        modules="conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a inception4b"
        " inception4c inception4d inception4e maxpool4 inception5a inception5b avgpool dropout",
    ),
    "Inception v3": _family(
        "inception_v3",
        taps="Conv2d_2b_3x3 Conv2d_4a_3x3 Mixed_5d Mixed_6e Mixed_7c avgpool",
        modules="Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2"
        " Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e Mixed_7a Mixed_7b Mixed_7c"
        " avgpool dropout",
    ),
    "MaxVit": _family("maxvit_t", taps="stem blocks.0 blocks.1 blocks.2 blocks.3", modules="stem blocks"),
    "MNASNet": _family(
        "mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3",
        taps="layers.7 layers.8 layers.9 layers.11 layers",
        modules="layers",
    ),
    "MobileNet v2": _family(
        "mobilenet_v2",
        taps="features.1 features.3 features.6 features.13 features",
        modules="features",
    ),
    "MobileNet v3 small": _family(
        "mobilenet_v3_small",
        taps="features.0 features.1 features.3 features.8 features avgpool",
        modules="features avgpool",
    ),
    "MobileNet v3 large": _family(
        "mobilenet_v3_large",
        taps="features.1 features.3 features.6 features.12 features avgpool",
        modules="features avgpool",
    ),
    "RegNet": _family(
        "regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf"
        " regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf"
        " regnet_y_32gf regnet_y_128gf",
        taps="trunk_output.block1 trunk_output.block2 trunk_output.block3 trunk_output.block4 avgpool",
        modules="stem trunk_output avgpool",
    ),
    "ResNet": _family(
        "resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d"
        " wide_resnet50_2 wide_resnet101_2",
        taps="layer1 layer2 layer3 layer4 avgpool",
        modules="conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool",
    ),
    "ShuffleNet v2": _family(
        "shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0",
        taps="maxpool stage2 stage3 conv5",
        modules="conv1 maxpool stage2 stage3 stage4 conv5",
    ),
    "SqueezeNet 1.0": _family(
        "squeezenet1_0", taps="features.1 features.5 features.10 features", modules="features"
    ),
    "SqueezeNet 1.1": _family(
        "squeezenet1_1", taps="features.1 features.4 features.7 features", modules="features"
    ),
    "Swin": _family(
        "swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b",
        taps="features.1 features.3 features.5 permute avgpool",
        modules="features norm permute avgpool flatten",
    ),
    "VGG": _family(
        "vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn",
        taps="block1 block2 block3 block4 block5",
        modules="features avgpool",
    ),
    "ViT base": _family(
        "vit_b_16 vit_b_32",
        taps="encoder.layers.encoder_layer_5 encoder.layers.encoder_layer_8 encoder",
        modules="conv_proj encoder",
    ),
    "ViT large": _family(
        "vit_l_16 vit_l_32",
        taps="encoder.layers.encoder_layer_11 encoder.layers.encoder_layer_17 encoder",
        modules="conv_proj encoder",
    ),
    "ViT huge": _family(
        "vit_h_14",
        taps="encoder.layers.encoder_layer_15 encoder.layers.encoder_layer_23 encoder",
        modules="conv_proj encoder",
    ),
    "MViT": _family(
        "mvit_v1_b mvit_v2_s",
        taps="blocks.0 blocks.2 blocks.13 blocks.15",
        modules="conv_proj pos_encoding blocks norm",
        reads_clips=True,
    ),
    "S3D": _family(
        "s3d",
        taps="features.0 features.3 features.6 features.12 features avgpool",
        modules="features avgpool",
        reads_clips=True,
    ),
    "Swin 3D": _family(
        "swin3d_t swin3d_s swin3d_b",
        taps="features.0 features.2 features.4 norm avgpool",
        modules="patch_embed pos_drop features norm avgpool",
        reads_clips=True,
    ),
    "Video ResNet": _family(
        "r3d_18 mc3_18 r2plus1d_18",
        taps="layer1 layer2 layer3 layer4 avgpool",
        modules="stem layer1 layer2 layer3 layer4 avgpool",
        reads_clips=True,
    ),
}

# The family of each network of torchvision.
ARCHS: dict[str, Family] = {arch: family for family in FAMILIES.values() for arch in family.archs}


def is_own(arch: str) -> bool:
    """Whether `arch` names a function of the user's own code, as in my_package.nets:build."""
    return ":" in arch


def check_arch(arch: str) -> str:
    """The arch as it is. Raises ConfigError for an unknown one."""
    if is_own(arch) and not _FUNCTION.fullmatch(arch):
        raise ConfigError(f"{arch!r} is no module and function, as in my_package.nets:build.")
    if not is_own(arch) and arch not in ARCHS:
        raise ConfigError(f"Unknown arch {arch!r}. Available: {', '.join(ARCHS)}.")
    return arch


def check_taps(arch: str, taps: Sequence[str]) -> None:
    """Raise ConfigError for an unknown arch, for no tap, and for names that can't be taps of `arch`.

    What is inside of the outermost modules is not known here: `pipeline.backbone` refuses such names.
    """
    if is_own(check_arch(arch)):
        return
    family = ARCHS[arch]
    available = f"Available: {', '.join(family.taps)}, or any module by its dotted name."
    if not taps:
        raise ConfigError(f"No tap given for {arch}. {available}")
    for tap in taps:
        if tap not in family.taps and tap.partition(".")[0] not in family.modules:
            raise ConfigError(f"Unknown tap {tap!r} for {arch}. {available}")
