"""Optimisation: optimizers, schedules of the learning rate, and precisions, by the names in the settings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import nn

from pipeline.errors import ConfigError
from pipeline.registry import either, one_of

# Each takes the finished share of the steps after the warm-up, and gives the share of the learning rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}

Groups = list[dict[str, Any]]  # of parameters, each group with its learning rate


def _adamw(groups: Groups, config: "OptimisationConfig") -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def _sgd(groups: Groups, config: "OptimisationConfig") -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, weight_decay=config.weight_decay, momentum=config.momentum)


OPTIMIZERS: dict[str, Callable[[Groups, "OptimisationConfig"], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}


@dataclass(frozen=True)
class MatrixPrecision:
    """The type in which matrices are multiplied; weights, losses and sums stay float32."""

    dtype: torch.dtype
    needs_gpu: bool = False
    scales_loss: bool = False  # small gradients would be 0 in this type


PRECISIONS: dict[str, MatrixPrecision] = {
    "float32": MatrixPrecision(torch.float32),
    "bfloat16": MatrixPrecision(torch.bfloat16),
    # Its smallest number is 6e-8.
    "float16": MatrixPrecision(torch.float16, needs_gpu=True, scales_loss=True),
}


class OptimisationConfig(BaseModel):
    """How weights are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveInt = 30  # at most
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    tail_learning_rate: PositiveFloat = 1e-5  # of the tail
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    schedule: Annotated[str, one_of(SCHEDULES)] = "cosine"  # of the learning rate; cosine: 0 after `epochs`
    warmup_epochs: NonNegativeInt = 0  # the learning rate rises in these, before the schedule
    grad_clip: PositiveFloat | None = 1.0  # largest norm of all gradients; null: no limit
    precision: Annotated[str, one_of(PRECISIONS)] = "float32"  # of matrix products; float16 needs a GPU

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}")
        return self


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
    return OPTIMIZERS[config.optimizer](groups, config)


def learning_rate_share(step: int, config: OptimisationConfig, *, epoch_steps: int) -> float:
    """The share of the full learning rate at a step, counted from 0: it rises, then follows the schedule."""
    num_warmup, num_steps = config.warmup_epochs * epoch_steps, config.epochs * epoch_steps
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return SCHEDULES[config.schedule]((step - num_warmup) / (num_steps - num_warmup))


def resolve_precision(config: OptimisationConfig, device: torch.device) -> MatrixPrecision:
    """The precision that `config` names. Raises ConfigError for one that the device does not have."""
    precision = PRECISIONS[config.precision]
    if precision.needs_gpu and device.type == "cpu":
        others = either(name for name, other in PRECISIONS.items() if not other.needs_gpu)
        raise ConfigError(f"precision {config.precision!r} needs a GPU. Use {others} on a CPU.")
    return precision
