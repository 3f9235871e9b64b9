import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.system.devices import resolve_device


def test_auto_is_a_gpu_where_there_is_one() -> None:
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there_is_an_error() -> None:
    missing = torch.cuda.device_count()
    with pytest.raises(ConfigError, match=f"Device 'cuda:{missing}' is not here"):
        resolve_device(f"cuda:{missing}")


def test_a_device_of_no_known_kind_is_an_error() -> None:
    with pytest.raises(ConfigError, match="Unknown device 'gpu'"):
        resolve_device("gpu")
