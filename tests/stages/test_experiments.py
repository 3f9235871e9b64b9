"""Models that were trained without DVC are experiments of the real DVC."""

import contextlib
import filecmp
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ExperimentError
from pipeline.learn.run import train
from pipeline.manifest import read_manifest, write_manifest
from stages.params import Params
from stages.project.experiments import open_experiments
from stages.train import write_trained
from tests.stages.test_dvc import ran
from tests.support.project import REPOSITORY, Project

TRAIN = ["train@recurrent"]
GRID = "-S train.hidden_size=16,17"
MEMBERS = ("hidden_size=16", "hidden_size=17")


def asked(project: Project, **values: object) -> dict[str, Any]:
    """The content of params.yaml with other values in section `train`."""
    document = yaml.safe_load((project.path / "params.yaml").read_text())
    return {**document, "train": {**document["train"], **values}}


def train_here(project: Project, document: dict[str, Any], folder: Path) -> None:
    """Train the recurrent model in this process; its outs are in `folder`, as the stage writes them."""
    config = Params.model_validate(document).train
    trained = train(
        project.path / "features" / config.tap,
        project.path / document["corpus"]["manifest"],
        config=config,
        models=["recurrent"],
        checkpoints=folder / "checkpoints",
        weights=project.path / "weights",
        state=folder / "state",
    )
    write_trained("recurrent", trained.fits["recurrent"], task=config.task, folder=folder)


def experiments(project: Project) -> dict[str, dict[str, Any]]:
    """What `dvc exp show` knows of each experiment, by name."""
    (_, baseline) = json.loads(project.dvc("exp", "show", "--json"))
    return {each["revs"][0]["name"]: each["revs"][0]["data"] for each in baseline["experiments"] or ()}


def metrics(experiment: dict[str, Any]) -> dict[str, float]:
    return {name: value for file in experiment["metrics"].values() for name, value in file["data"].items()}


def of_git(project: Project, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=project.path, check=True, capture_output=True, text=True
    ).stdout


def ref_of(project: Project, name: str) -> str:
    return of_git(project, "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/{name}").strip()


def lock_of(project: Project, name: str) -> dict[str, Any]:
    return yaml.safe_load(of_git(project, "show", f"{ref_of(project, name)}:dvc.lock"))["stages"]


def same(first: Path, second: Path) -> bool:
    """Whether two folders have the same files with the same bytes."""
    names = [{path.relative_to(folder) for path in folder.rglob("*")} for folder in (first, second)]
    files = [name for name in names[0] if (first / name).is_file()]
    return names[0] == names[1] and not any(filecmp.cmpfiles(first, second, files, shallow=False)[1:])


@pytest.mark.slow
def test_a_model_trained_without_dvc_is_the_experiment_that_dvc_would_have_run(project, tmp_path):
    document = asked(project, hidden_size=16, num_layers=2)
    train_here(project, document, tmp_path / "member")
    with contextlib.chdir(project.path), open_experiments() as found:
        assert not found.restore(document, tmp_path / "nothing", stages=TRAIN)
        found.save("member", document, tmp_path / "member", stages=TRAIN)
        assert found.restore(document, tmp_path / "again", stages=TRAIN)
    for out in ("checkpoints", "dvclive", "metrics", "reports"):
        assert same(tmp_path / "member" / out, tmp_path / "again" / out)
    assert of_git(project, "status", "--short") == ""
    member = experiments(project)["member"]
    assert metrics(member).keys() == {"val_accuracy", "val_loss"}
    assert member["params"]["params.yaml"]["data"] == document

    output = project.dvc("exp", "run", "-n", "run", "-S", "train.hidden_size=16", "-S", "train.num_layers=2")
    assert ran(output) == ["settings", "evaluate", "report"]
    assert same(project.path / "checkpoints/recurrent", tmp_path / "member/checkpoints/recurrent")
    locks = {name: lock_of(project, name) for name in ("member", "run")}
    for lock in locks.values():
        del lock["evaluate"], lock["report"]
    assert locks["member"] == locks["run"]

    of_git(project, "restore", ".")
    with contextlib.chdir(project.path), open_experiments() as found:
        everything = [*TRAIN, "train@baseline", "evaluate"]
        assert found.restore(document, tmp_path / "winner", stages=everything)
        found.save("winner", document, tmp_path / "winner", stages=everything)
    locks = {name: lock_of(project, name) for name in ("winner", "run")}
    for lock in locks.values():
        del lock["report"]
    assert locks["winner"] == locks["run"]
    shown = experiments(project)
    assert metrics(shown["winner"]) == metrics(shown["run"])
    assert list(metrics(shown["winner"])) == ["val_accuracy", "val_loss", "accuracy", "shuffled", "baseline"]


@pytest.mark.slow
def test_an_experiment_of_another_manifest_is_branched_pushed_pulled_and_applied(project, tmp_path):
    first, second, *others = read_manifest(project.path / "manifests/mine.csv").clips()
    labels = [replace(first, label=second.label), replace(second, label=first.label)]
    write_manifest(project.path / "manifests/other.csv", [*labels, *others])
    write_manifest(project.path / "manifests/few.csv", [*labels, *others[:-1]])
    of_git(project, "init", "--quiet", "--bare", "--initial-branch", "main", str(tmp_path / "git"))
    of_git(project, "remote", "add", "origin", str(tmp_path / "git"))
    project.dvc("remote", "add", "--default", "store", str(tmp_path / "remote"))
    project.commit()
    document = {
        **asked(project, hidden_size=16),
        "corpus": {"manifest": "manifests/other.csv", "root": "videos"},
    }
    with contextlib.chdir(project.path), open_experiments() as found:
        found.check_manifest(Path("manifests/other.csv"))
        with pytest.raises(
            ExperimentError, match=r"No experiment can have manifests/few.csv: the features are"
        ):
            found.check_manifest(Path("manifests/few.csv"))
        found.save("member", document, Path(), stages=TRAIN)  # of another model: DVC does not look inside
    project.dvc("exp", "push", "origin", "member")
    project.dvc("exp", "branch", "member", "branch")
    assert of_git(project, "rev-parse", "branch") == of_git(project, "rev-parse", ref_of(project, "member"))
    of_git(project, "push", "--quiet", "origin", "main")

    clone = Project(tmp_path / "clone")
    of_git(project, "clone", "--quiet", str(tmp_path / "git"), str(clone.path))
    clone.dvc("exp", "pull", "origin", "member")
    clone.dvc("exp", "apply", "member")
    assert same(clone.path / "checkpoints/recurrent", project.path / "checkpoints/recurrent")
    assert yaml.safe_load((clone.path / "params.yaml").read_text()) == document
    stale = json.loads(clone.dvc("status", "--json"))
    assert stale.keys() == {"settings", "train@baseline", "evaluate", "report"}  # the features are not stale
    assert json.loads((clone.path / "metrics/evaluate.json").read_text()) == {}


@pytest.mark.slow
def test_the_stage_sweep_makes_experiments_in_a_temporary_run_and_takes_them_over(project):
    text = (REPOSITORY / "sweep/dvc.yaml").read_text()
    (project.path / "sweep").mkdir()
    (project.path / "sweep/dvc.yaml").write_text(re.sub(r"( +-S .*\n)+", f"      {GRID}\n", text))
    project.commit()
    assert ran(project.dvc("repro", "--dry")) == ["settings"]

    output = project.dvc("exp", "run", "--temp", "-n", "all", "-S", "train.dropout=0.25", "sweep/dvc.yaml")
    assert ran(output) == ["settings", "sweep"]
    shown = experiments(project)
    assert shown.keys() == {"all", *MEMBERS}
    assert sorted(len(metrics(shown[name])) for name in MEMBERS) == [2, 5]  # the winner is evaluated
    assert of_git(project, "status", "--short") == ""

    project.set({"train.dropout": 0.25})
    shutil.rmtree(project.path / ".framecache/training")
    output = project.dvc("repro", "sweep/dvc.yaml")
    assert ran(output) == ["settings", "sweep"]
    assert "val clips, on cpu" not in output  # nothing is trained
    assert ran(project.dvc("repro", "--dry", "sweep/dvc.yaml")) == ["settings"]


def test_stale_features_make_no_experiment(project, monkeypatch):
    project.set({"extract.sampling": {"every": 2}})
    monkeypatch.chdir(project.path)
    with pytest.raises(
        ExperimentError, match=r"params.yaml asks for \(extract would run again\).*`dvc repro extract` first"
    ):
        open_experiments().__enter__()
