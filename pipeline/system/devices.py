"""Devices: from a parameter's name to the torch device."""

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
