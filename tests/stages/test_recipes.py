"""Every command of docs/recipes.md is one that stage train accepts."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.recipes import commands, table
from pipeline.backbone.networks import check_taps
from pipeline.learn.tasks import TASKS
from pipeline.learn.training import TrainConfig
from stages.params import CorpusConfig, load_section

REPOSITORY = Path(__file__).parents[2]
RECIPES = commands((REPOSITORY / "docs/recipes.md").read_text())


def with_changes(params: dict[str, Any], arguments: list[str]) -> dict[str, Any]:
    """The parameters that `dvc exp run <arguments>` runs with; DVC takes known keys only."""
    for flag, value in pairwise(arguments):
        if flag == "-S":
            key, _, text = value.partition("=")
            *parents, last = key.split(".")
            section = params
            for parent in parents:
                section = section[parent]
            assert last in section, f"params.yaml has no {key}"
            section[last] = yaml.safe_load(text)
    return params


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipes_parameters_are_accepted(name: str, tmp_path: Path) -> None:
    params = with_changes(yaml.safe_load((REPOSITORY / "params.yaml").read_text()), RECIPES[name])
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params))
    config = load_section("train", TrainConfig, path=path)
    assert config.task in TASKS
    assert config.tap in params["extract"]["taps"]
    if config.tail:
        check_taps(params["weights"]["arch"], [config.tail])
    corpus = load_section("corpus", CorpusConfig, path=path)
    outs = yaml.safe_load((REPOSITORY / "manifests/dvc.yaml").read_text())["stages"].values()
    assert {corpus.manifest, corpus.root} <= {out for stage in outs for out in stage["outs"]}


def test_the_results_of_the_page_are_the_recorded_ones() -> None:
    recorded = json.loads((REPOSITORY / "benchmarks/results/recipes.json").read_text())
    assert table(recorded) in (REPOSITORY / "docs/recipes.md").read_text()
    assert list(recorded) == [name for name in RECIPES if name in recorded]
