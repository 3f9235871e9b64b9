"""Devices: from a parameter's name to the torch device; and what else decides the last bits of a feature."""

import platform
from importlib.metadata import version

import torch

from pipeline.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The torch device of this name. Raises ConfigError if torch does not see it on this machine."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"Unknown device {name!r}. Use 'auto', 'cpu', 'cuda' or 'cuda:1'.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"Device {name!r} is not here: torch sees {torch.cuda.device_count()} GPUs. Use 'auto' or 'cpu'."
        )
    return device


def made_with(device: torch.device) -> dict[str, str]:
    """Versions and device, on which the last bits of features depend, for people."""
    packages = {name: version(name) for name in ("torch", "torchvision", "numpy", "av")}
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    )
    return {"python": platform.python_version(), **packages, "device": f"{device.type} ({name})"}
