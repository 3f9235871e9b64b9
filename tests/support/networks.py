"""Weights for any network, quickly."""

import torch

from pipeline.backbone import Weights
from pipeline.backbone.networks import build_network, trunk_state


def made_up_weights(arch: str, **arguments: object) -> Weights:
    """Random weights, quickly; BatchNorms have statistics, so that folding them matters."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in trunk_state(build_network(arch, arguments).state_dict()).items():
        if not tensor.is_meta and not name.endswith(("running_mean", "running_var")):
            state[name] = tensor  # a buffer, such as Swin's indices
        elif name.endswith("running_var"):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        else:
            scale = max(1, tensor[0].numel()) ** -0.5 if tensor.ndim > 1 else 0.3
            state[name] = torch.randn(tensor.shape, generator=generator) * scale
            if tensor.ndim == 1 and name.endswith("weight"):
                state[name] += 1
    return Weights(arch, "0" * 64, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3), "made up", state, arguments)
