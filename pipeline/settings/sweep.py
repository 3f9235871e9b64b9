"""Settings of a sweep: which members it has, by the keys that differ, and how long they train."""

import itertools
import json
import math
import random
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


def _varies(key: str) -> str:
    if key != "corpus.manifest" and not key.startswith("train."):
        raise ValueError(
            "a sweep trains on features that are there: it varies corpus.manifest and keys of train"
        )
    return key


Key = Annotated[str, AfterValidator(_varies)]
Values = Annotated[tuple[Any, ...], Field(min_length=1)]


class Distribution(BaseModel):
    """Where a key's values are drawn from: one of the four."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uniform: tuple[float, float] | None = None  # from the first number to the second
    log_uniform: tuple[float, float] | None = None  # likewise, its logarithm uniform
    integers: tuple[int, int] | None = None  # whole numbers, both ends included
    choice: Values | None = None  # one of these values

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        given = {name: value for name, value in self if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(type(self).model_fields)}")
        if "choice" not in given:
            ((name, (low, high)),) = given.items()
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{name} needs a smaller number and a larger one, not {low} and {high}")
            if name == "log_uniform" and low <= 0:
                raise ValueError(f"log_uniform needs numbers above 0, not {low}")
        return self

    def draw(self, rng: random.Random) -> Any:
        """A value; a number with a fraction has four digits."""
        if self.choice:
            return rng.choice(self.choice)
        if self.integers:
            return rng.randint(*self.integers)
        if self.uniform:
            return _rounded(rng.uniform(*self.uniform), self.uniform)
        low, high = self.log_uniform or (1.0, 1.0)
        return _rounded(math.exp(rng.uniform(math.log(low), math.log(high))), (low, high))


class RandomConfig(BaseModel):
    """Members whose values are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_draws: PositiveInt
    seed: NonNegativeInt = 0  # of the draws; more of them begin with the same ones
    keys: Annotated[dict[Key, Distribution], Field(min_length=1)]

    def draws(self) -> list[dict[str, Any]]:
        """The values of each draw, by key. A key's draws depend on its name and the seed, on no other key."""
        rngs = {key: random.Random(f"{self.seed} {key}") for key in self.keys}
        return [{key: each.draw(rngs[key]) for key, each in self.keys.items()} for _ in range(self.num_draws)]


class HalvingConfig(BaseModel):
    """Successive halving: all members start, and after each rung the better ones go on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rungs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # epochs
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5  # share that goes on, by the val loss

    @model_validator(mode="after")
    def _rungs_rise(self) -> Self:
        if list(self.rungs) != sorted(set(self.rungs)):
            raise ValueError(f"rungs must rise, unlike {list(self.rungs)}")
        return self


class SweepConfig(BaseModel):
    """Which members a sweep has, and how long they train.

    A member is params.yaml with other values for some keys: an entry of `list`, a draw of `random` and a
    point of `grid` together, all with all.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    grid: dict[Key, Values] = {}  # a key's values, each with all of the others
    list: tuple[dict[Key, Any], ...] = ()  # values by key
    random: RandomConfig | None = None
    halving: HalvingConfig | None = None  # null: all members train to their end
    minutes: PositiveFloat | None = None  # time to train in; null: no limit

    @model_validator(mode="after")
    def _keys_are_varied_once(self) -> Self:
        keys = [
            *self.grid,
            *{key for each in self.list for key in each},
            *(self.random.keys if self.random else ()),
        ]
        if not keys:
            raise ValueError("a sweep varies something: give grid, list or random")
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"{', '.join(twice)}: give each key in one of grid, list and random")
        return self


def sweep_points(sweep: SweepConfig) -> list[dict[str, Any]]:
    """The values of each member by key, in the order of the file; equal ones are not yet one."""
    grid = [dict(zip(sweep.grid, values, strict=True)) for values in itertools.product(*sweep.grid.values())]
    draws = sweep.random.draws() if sweep.random else [{}]
    return [a | b | c for a in sweep.list or ({},) for b in draws for c in grid]


def _rounded(value: float, limits: tuple[float, float]) -> float:
    return min(max(float(f"{value:.4g}"), limits[0]), limits[1])


def value_text(value: Any) -> str:
    """A value of a key for people, as YAML has it."""
    return value if isinstance(value, str) else json.dumps(value)
