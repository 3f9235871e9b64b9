"""A sweep under the real DVC: its members are experiments, and none is trained twice."""

import json
import shutil

import pytest

from tests.support.project import Project

pytestmark = pytest.mark.slow

SWEEP = ("python", "-m", "stages.sweep", "grid", "-S", "train.hidden_size=4,8")


def shown(project: Project) -> dict[str, dict[str, float]]:
    """The metrics of each experiment."""
    (found,) = [
        each for each in json.loads(project.dvc("exp", "show", "--json")) if each["rev"] != "workspace"
    ]
    return {
        each["name"]: {
            name: value
            for file in each["revs"][0]["data"]["metrics"].values()
            for name, value in file["data"].items()
        }
        for each in found["experiments"]
    }


def test_members_are_experiments_and_only_the_winner_is_tested(project: Project) -> None:
    project.run(*SWEEP)
    table = json.loads((project.path / "reports/sweep/table.json").read_text())
    metrics = shown(project)
    assert sorted(metrics) == ["hidden_size=4", "hidden_size=8"]
    for row in table["members"]:
        assert metrics[row["member"]]["val_accuracy"] == row["val_accuracy"]
        assert ("accuracy" in metrics[row["member"]]) == (row["member"] == table["winner"])
    assert project.run("git", "status", "--porcelain") == ""
    # An experiment of the same settings finds the member, and a later sweep finds both of DVC.
    assert "train@recurrent' is cached" in project.dvc("exp", "run", "-S", "train.hidden_size=8")
    project.run("git", "checkout", ".")
    shutil.rmtree(project.path / ".framecache/training/sweeps")
    output = project.run(*SWEEP)
    assert "train and" not in output  # what a training says first
    assert json.loads((project.path / "reports/sweep/table.json").read_text()) == table


def test_without_git_a_sweep_names_the_way_out(project: Project) -> None:
    shutil.rmtree(project.path / ".git")
    assert "A sweep with --no-experiments needs none." in project.run(*SWEEP, check=False)
    project.run(*SWEEP, "--no-experiments")
