"""Recipes are differences to params.yaml as shipped, and give their parameters whatever ran before."""

import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from dvc.utils.serialize import load_yaml

from benchmarks.recipes import record, table
from pipeline.errors import ConfigError
from pipeline.manifest import read_manifest
from stages import recipe
from stages.digits import FOLDERS
from stages.overrides import flags, overlaid
from stages.params import read_params
from stages.recipe import DEFAULTS, Result, read_recipe, recipe_names, recipe_params
from stages.resolution import check_together
from tests.support.in_process import run_main
from tests.support.project import REPOSITORY, Project

SHIPPED = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
PAGE = (REPOSITORY / "docs/recipes.md").read_text()
NAMES = sorted(path.stem for path in (REPOSITORY / "recipes").glob("*.yaml"))
OTHERS = [name for name in NAMES if name != DEFAULTS]

# The only stage of projects that run recipes here.
STAGE = """
stages:
  copy:
    cmd: cp params.yaml copied.yaml
    params:
      - params.yaml:
    outs:
      - copied.yaml
"""

# An own recipe: values that are lists, nulls and mappings, and keys that params.yaml lacks.
ODD = """
about: Odd values
params:
  weights: {mean: [0.5, 0.25, 0.125], std: null}
  extract:
    sampling: {fps: 5, max_frames: 64}
    preprocessing: {resize: [32, 48], crop: 32}
    store: {codec: lz4, shard_mb: 1}
  train: {monitor: loss, learning_rate: 0.00002}
"""


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_the_defaults_are_the_shipped_parameters_without_corpus_and_weights() -> None:
    defaults = read_recipe(DEFAULTS).params
    assert defaults == {name: SHIPPED[name] for name in SHIPPED if name not in ("corpus", "weights")}


@pytest.mark.parametrize("name", OTHERS)
def test_a_recipe_says_what_differs_from_the_defaults_and_nothing_else(name: str) -> None:
    params = dict(read_recipe(name).params)
    assert params.pop("corpus").keys() == {"manifest", "root"}  # an earlier recipe may have left another
    wanted = recipe_params(name, SHIPPED)
    changed = [flag for flag in flags(SHIPPED, wanted) if not flag.startswith("-S corpus.")]
    assert len(changed) == num_flags(params, SHIPPED)
    assert overlaid(wanted, params) == wanted


def num_flags(params: dict[str, Any], shipped: dict[str, Any]) -> int:
    """A section that params.yaml does not have is one flag."""
    return sum(
        num_flags(value, shipped[key]) if isinstance(value, dict) and key in shipped else 1
        for key, value in params.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_recipes_parameters_are_accepted(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(recipe_params(name, SHIPPED)))
    params = read_params(path)
    manifest = read_manifest(Path(params.corpus.manifest))
    check_together(params, manifest)
    folders = {FOLDERS[Path(source).suffix] for clip in manifest for source in clip.sources}
    assert folders == {Path(params.corpus.root)}


@pytest.mark.slow
def test_in_any_order_dvc_turns_the_flags_into_each_recipes_parameters(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    shutil.copy("params.yaml", path)
    for name in [*random.Random(0).sample(OTHERS, k=len(OTHERS)), DEFAULTS]:
        now = yaml.safe_load(path.read_text())
        words = " ".join(flags(now, recipe_params(name, now))).split()
        apply_overrides(path, words[1::2])
        assert yaml.safe_load(path.read_text()) == recipe_params(name, SHIPPED | {"corpus": now["corpus"]})


def test_corpus_and_weights_stay_unless_the_recipe_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"corpus": {"manifest": "mine.csv", "root": "/data"}, "weights": {"arch": "vgg16", "mean": None}}
    now = SHIPPED | own
    assert recipe_params("video-gru", now)["weights"] == own["weights"]
    assert recipe_params("video-gru", now)["corpus"] == SHIPPED["corpus"]
    assert recipe_params(DEFAULTS, now)["corpus"] == own["corpus"]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "recipes", "recipes")
    Path("recipes/odd.yaml").write_text(ODD)
    assert recipe_params("odd", now)["weights"] == {
        "arch": "vgg16",
        "mean": [0.5, 0.25, 0.125],
        "std": None,
    }


def test_the_page_has_each_recipes_command_and_result() -> None:
    results = {name: result for name in OTHERS if (result := read_recipe(name).result)}
    assert set(results) == set(OTHERS)
    lines = PAGE.splitlines()
    for line in table(results).splitlines():
        assert line in lines
    for name in OTHERS:
        assert f"$ dvc exp run -n {name} $(python -m stages.recipe {name})" in lines
    assert set(re.findall(r"python -m stages.recipe ([a-z-]+)", PAGE)) == set(OTHERS)


def test_a_new_result_is_recorded_and_the_rest_of_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("recipes/mine.yaml")
    path.parent.mkdir()
    path.write_text("about: Mine\nparams: # a comment\n  train: {cell: gru}\n")
    for loss in (0.1, 0.1 + 0.2):
        result = Result(
            metric="rmse", model=1.5, interval=(1.0, 2.0), shuffled=3.0, baseline=4.0, first_epoch_loss=loss
        )
        record("mine", result)
        assert read_recipe("mine").result == result
        assert path.read_text().startswith(
            "about: Mine\nparams: # a comment\n  train: {cell: gru}\nresult:\n"
        )


def test_all_recipes_are_listed_with_their_line_and_recorded_result() -> None:
    status, output, _ = run_main(recipe.main, REPOSITORY)
    assert status == 0
    assert [line.split()[0] for line in output.splitlines()] == ["recipe", *NAMES]
    lines = [re.split("  +", line) for line in output.splitlines()]
    assert ["video-gru", "accuracy 0.958", "A clip's direction, by a GRU"] in lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "about: Mine\nparam: {}\n",
            "recipes/mine.yaml: unknown key 'param'. Available: about, params, result",
        ),
        ("params: {}\n", "recipes/mine.yaml: about is missing"),
        ("about: Mine\nparams: {tap: layer4}\n", "recipes/mine.yaml: params.tap: 'layer4' is not allowed"),
        ("- a\n", "recipes/mine.yaml must be a mapping of keys to values"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_it(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipes").mkdir()
    Path("recipes/mine.yaml").write_text(text)
    assert recipe_names() == ["mine"]
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_recipe("mine")


class TestWithDvc:
    """In a small project, as users run recipes: the shell splits the flags, DVC changes params.yaml."""

    pytestmark = pytest.mark.slow

    @pytest.fixture
    def project(self, project: Project) -> Project:
        (project.path / "dvc.lock").unlink()
        shutil.copytree(REPOSITORY / "recipes", project.path / "recipes")
        (project.path / "recipes/odd.yaml").write_text(ODD)
        (project.path / "dvc.yaml").write_text(STAGE)
        project.commit()
        return project

    def run(self, project: Project, name: str, *, options: str = "", check: bool = True) -> str:
        """`dvc exp run` of the recipe."""
        command = f"dvc exp run {options} $(python -m stages.recipe {name})"
        return project.run("bash", "-c", command, check=check)

    def params(self, project: Project) -> Any:
        return load_yaml(
            project.path / "params.yaml"
        )  # as DVC reads it: YAML 1.2, in which 2e-05 is a number

    def test_two_recipes_in_a_row_do_not_mix(self, project: Project) -> None:
        own_weights = {"arch": "resnet18", "source": "random:0"}
        for name in ("words-transformer-transformer", "image-channels"):
            self.run(project, name, options=f"-n {name}")
            assert self.params(project) == recipe_params(name, SHIPPED) | {"weights": own_weights}
        project.commit()  # nor after a commit
        self.run(project, "video-gru", options="-n one-more")
        assert self.params(project) == recipe_params("video-gru", SHIPPED) | {"weights": own_weights}

    def test_lists_nulls_mappings_and_leftovers_survive_the_shell_and_hydra(self, project: Project) -> None:
        self.run(project, "odd")
        params = self.params(project)
        assert params["extract"] == SHIPPED["extract"] | {
            "sampling": {"fps": 5, "max_frames": 64},
            "preprocessing": {"resize": [32, 48], "crop": 32},
            "store": {"codec": "lz4", "shard_mb": 1},
        }
        assert params["train"] == SHIPPED["train"] | {"monitor": "loss", "learning_rate": 0.00002}
        assert params["weights"]["mean"] == [0.5, 0.25, 0.125]
        assert read_params(project.path / "params.yaml").train.learning_rate == 0.00002
        project.set({"extract.sampling": {"every": 2}, "train.left": None, "train.behind": {"a": [1]}})
        project.commit()
        self.run(project, "odd")
        assert self.params(project) == params
        self.run(project, "video-bidirectional")
        assert self.params(project) == SHIPPED | {"weights": params["weights"]}

    def test_a_recipe_can_be_queued_and_takes_further_flags(self, project: Project) -> None:
        before = self.params(project)
        command = (
            "dvc exp run --queue $(python -m stages.recipe video-gru) -S train.cell=rnn -S train.epochs=3"
        )
        project.run("bash", "-c", command)
        queued = yaml.safe_load(project.run("git", "show", "refs/exps/celery/stash:params.yaml"))
        wanted = recipe_params("video-gru", before)
        wanted["train"] |= {"cell": "rnn", "epochs": 3}
        assert queued == wanted
        assert self.params(project) == before

    def test_an_unknown_recipe_runs_nothing(self, project: Project) -> None:
        before = self.params(project)
        output = self.run(project, "video-gur", check=False)
        assert "There is no recipes/video-gur.yaml. `python -m stages.recipe` lists all recipes." in output
        assert "ERROR: 'recipe-failed' does not exist" in output
        assert "usage:" not in output
        assert self.params(project) == before
