"""Recipes: prints the flags with which `dvc exp run` runs one, whatever params.yaml says; or lists all."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ConfigError, PipelineError
from stages import console
from stages.overrides import flags, overlaid
from stages.params import PARAMS
from stages.yaml_files import checked, read_mapping

RECIPES = Path("recipes")
DEFAULTS = "defaults"  # the recipe that has params.yaml as shipped, without corpus and weights


class Result(BaseModel):
    """A recipe's headline metric on the test split, as recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    model: float
    interval: tuple[float, float]  # of the model, 95 %, by bootstrap over clips
    shuffled: float  # the same model on shuffled frames
    baseline: float
    first_epoch_loss: float  # of the model on the val split


class Recipe(BaseModel):
    """The content of recipes/<name>.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    about: str  # one line
    params: dict[str, dict[str, Any]] = {}  # section: {key: value}, where they differ from the defaults
    result: Result | None = None


def main() -> None:
    """Print one recipe's flags, a line each, or the table of all recipes."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.recipe",
        description=__doc__,
        epilog="Use: dvc exp run -n NAME $(python -m stages.recipe NAME). Reads params.yaml and recipes/. The"
        " flags undo all that differs from the defaults and the recipe; corpus and weights stay as they are"
        " unless the recipe names them.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe; without it, all are listed")
    name = parser.parse_args().name
    if name is None:
        console.print_table([_row(name) for name in recipe_names()])
        return
    try:
        now = read_mapping(PARAMS)
        print(*flags(now, recipe_params(name, now)), sep="\n")
    except (PipelineError, OSError):
        print("recipe-failed")  # `dvc exp run` refuses this target; without any flag it would run
        raise


def recipe_names() -> list[str]:
    """The names of all recipes, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(name: str) -> Recipe:
    """The recipe in recipes/<name>.yaml. Raises ConfigError when there is none, and for wrong keys."""
    path = RECIPES / f"{name}.yaml"
    if not path.exists():
        raise ConfigError(f"There is no {path}. `python -m stages.recipe` lists all recipes.")
    return checked(read_mapping(path), Recipe, path=path)


def recipe_params(name: str, now: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a run of the recipe, in a project whose parameters are `now`.

    Raises as `read_recipe` does.
    """
    kept = {section: now[section] for section in ("corpus", "weights") if section in now}
    return overlaid(kept | read_recipe(DEFAULTS).params, read_recipe(name).params)


def _row(name: str) -> dict[str, str]:
    recipe = read_recipe(name)
    recorded = f"{recipe.result.metric.replace('_', ' ')} {recipe.result.model:.3f}" if recipe.result else ""
    return {"recipe": name, "recorded": recorded, "about": recipe.about}


if __name__ == "__main__":
    console.run(main)
