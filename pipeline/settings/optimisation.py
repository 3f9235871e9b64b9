"""Settings of optimisation: optimizers, schedules of the learning rate, and precisions."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.registry import one_of

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Optimizer:
    """A rule that changes weights."""

    has_momentum: bool = False  # the setting `momentum`


OPTIMIZERS: dict[str, Optimizer] = {"adamw": Optimizer(), "sgd": Optimizer(has_momentum=True)}


@dataclass(frozen=True)
class MatrixPrecision:
    """The type in which matrices are multiplied; weights, losses and sums stay float32."""

    needs_gpu: bool = False
    scales_loss: bool = False  # small gradients would be 0 in this type


PRECISIONS: dict[str, MatrixPrecision] = {
    "float32": MatrixPrecision(),
    "bfloat16": MatrixPrecision(),
    "float16": MatrixPrecision(needs_gpu=True, scales_loss=True),  # its smallest number is 6e-8
}


class OptimisationConfig(BaseModel):
    """How weights are trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: PositiveInt = 20  # at most
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "adamw"  # how gradients change weights
    learning_rate: PositiveFloat = 1e-3  # at the top of its schedule
    tail_learning_rate: PositiveFloat = 1e-5  # of the tail
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # of sgd
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2  # pulls weights to 0
    schedule: Schedule = "cosine"  # of the learning rate; cosine: 0 after `epochs`
    warmup_epochs: NonNegativeInt = 0  # the learning rate rises in these, before the schedule
    grad_clip: PositiveFloat | None = 1.0  # largest norm of all gradients; null: no limit
    precision: Annotated[str, one_of(PRECISIONS)] = "float32"  # of matrix products; float16 needs a GPU

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be fewer than epochs {self.epochs}")
        return self
