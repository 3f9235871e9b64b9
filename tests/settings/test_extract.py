"""Settings of extraction, and the names of its choices."""

import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from pipeline.backbone.networks import build_network, split_into_stages
from pipeline.errors import ConfigError
from pipeline.settings.extract import Codec, ExtractConfig, StoreFormat
from pipeline.settings.weights import ARCHS, check_taps
from pipeline.store.format.codecs import CODECS
from pipeline.store.format.containers import CONTAINERS

HEAVY = {"torch", "torchvision", "numpy", "av", "pyarrow", "zarr", "h5py", "numcodecs"}


def test_importing_the_settings_imports_nothing_heavy() -> None:
    program = "import sys, pipeline.settings.extract, pipeline.settings.weights; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not HEAVY.intersection(done.stdout.split())


def test_what_can_be_chosen_is_what_there_is() -> None:
    assert get_args(StoreFormat) == tuple(CONTAINERS)
    assert get_args(Codec) == tuple(CODECS)


@pytest.mark.parametrize("arch", ARCHS)
def test_the_taps_of_an_arch_are_where_its_network_is_cut(arch: str) -> None:
    assert tuple(split_into_stages(build_network(arch))) == ARCHS[arch]


def test_a_tap_is_named_once_and_belongs_to_the_arch() -> None:
    with pytest.raises(ValidationError, match="'layer3' is there several times; name each tap once"):
        ExtractConfig(taps=("layer3", "layer4", "layer3"))
    check_taps("resnet18", ["layer3", "avgpool"])
    with pytest.raises(ConfigError, match="Unknown tap 'block1' for resnet18. Available: layer1, layer2"):
        check_taps("resnet18", ["block1"])
    with pytest.raises(ConfigError, match="No tap given for resnet18. Available: layer1, layer2"):
        check_taps("resnet18", [])
