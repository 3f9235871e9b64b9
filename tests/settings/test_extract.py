"""Settings of extraction, and the names of its choices."""

import subprocess
import sys
from typing import get_args

import pytest
from pydantic import ValidationError

from pipeline.settings.extract import Codec, ExtractConfig, StoreFormat
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


def test_a_tap_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="'layer3' is there several times; name each tap once"):
        ExtractConfig(taps=("layer3", "layer4", "layer3"))


def test_a_layout_of_what_is_no_tap_is_refused() -> None:
    with pytest.raises(ValidationError, match="layouts names encoder, which is no tap here"):
        ExtractConfig(taps=("layer3",), layouts={"encoder": "1+14x14"})
