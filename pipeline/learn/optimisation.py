"""Optimisation: optimizers, schedules of the learning rate, and precisions, by the names in the settings."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.registry import either
from pipeline.settings.optimisation import PRECISIONS, OptimisationConfig

# Each takes the finished share of the steps after the warm-up, and gives the share of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}

Groups = list[dict[str, Any]]  # of parameters, each group with its learning rate


def _eager(optimizer: type[torch.optim.Optimizer]) -> Callable[..., torch.optim.Optimizer]:
    """The same optimizer, whose methods do not tell torch's compiler what it must not compile.

    To tell it, they import the compiler, which takes as long as importing torch itself.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


_AdamW = _eager(torch.optim.AdamW)
_SGD = _eager(torch.optim.SGD)


def _adamw(groups: Groups, config: OptimisationConfig) -> torch.optim.Optimizer:
    return _AdamW(groups, weight_decay=config.weight_decay, fused=True)


def _sgd(groups: Groups, config: OptimisationConfig) -> torch.optim.Optimizer:
    return _SGD(groups, weight_decay=config.weight_decay, momentum=config.momentum)


OPTIMIZER_BUILDERS: dict[str, Callable[[Groups, OptimisationConfig], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}


PRECISION_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def make_optimizer(model: nn.Module, config: OptimisationConfig) -> torch.optim.Optimizer:
    """The optimizer of all parameters; those of a tail form a group with `tail_learning_rate`.

    Each group has its full learning rate, which the schedule lowers, as `full_lr`.
    """
    tail = [value for name, value in model.named_parameters() if ".tail." in f".{name}"]
    others = [value for name, value in model.named_parameters() if ".tail." not in f".{name}"]
    groups = [
        {"params": params, "lr": rate, "full_lr": rate}
        for params, rate in ((others, config.learning_rate), (tail, config.tail_learning_rate))
        if params
    ]
    return OPTIMIZER_BUILDERS[config.optimizer](groups, config)


def learning_rate_share(step: int, config: OptimisationConfig, *, epoch_steps: int) -> float:
    """The share of the full learning rate at a step, counted from 0: it rises, then follows the schedule."""
    num_warmup, num_steps = config.warmup_epochs * epoch_steps, config.epochs * epoch_steps
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return SCHEDULES[config.schedule]((step - num_warmup) / (num_steps - num_warmup))


def resolve_precision(config: OptimisationConfig, device: torch.device) -> torch.dtype:
    """The type in which matrices are multiplied. Raises ConfigError for one that the device does not have."""
    if PRECISIONS[config.precision].needs_gpu and device.type == "cpu":
        others = either(name for name, other in PRECISIONS.items() if not other.needs_gpu)
        raise ConfigError(f"precision {config.precision!r} needs a GPU. Use {others} on a CPU.")
    return PRECISION_DTYPES[config.precision]
