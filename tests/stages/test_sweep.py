"""The stage sweep, run as users run it, on a small view of the real store."""

import csv
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import yaml

import stages.sweep
import stages.sweep_training
from pipeline.learn.run import train
from pipeline.settings.machine import Machine
from pipeline.settings.sweep import SweepConfig
from stages.params import read_params
from stages.sweep_plan import num_epochs
from stages.sweep_training import Trainings
from tests.stages.test_train import make_workspace
from tests.support.in_process import run_main
from tests.support.kills import killed_at_change

pytestmark = pytest.mark.slow

GRID = ("grid", "-S", "train.hidden_size=4,6", "-S", "train.seed=0,1", "--no-experiments")
NAMES = [f"hidden_size={size},seed={seed}" for size in (4, 6) for seed in (0, 1)]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return make_workspace(tmp_path / "workspace", train={"learning_rate": 0.02})


def sweep(workspace: Path, *arguments: str, status: int = 0) -> tuple[str, str]:
    found, stdout, stderr = run_main(stages.sweep.main, workspace, *arguments)
    assert found == status, stderr
    return stdout, stderr


def report(workspace: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((workspace / "reports/sweep/table.json").read_text())
    return content


def losses_alone(workspace: Path, path: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> list[float]:
    """The val losses of a model that is trained without a sweep."""
    monkeypatch.chdir(workspace)
    fits = train(
        "features/layer4",
        "manifests/toy.csv",
        config=read_params().train.model_copy(update=values),
        machine=Machine(device="cpu"),
        models=("recurrent",),
        checkpoints=path / "checkpoints",
        state=path / "state",
    ).fits
    return [epoch["val"]["loss"] for epoch in fits["recurrent"].history]


def test_a_sweep_trains_each_member_as_if_alone_and_tests_the_winner_and_its_baseline(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout, _ = sweep(workspace, *GRID)
    table = report(workspace)
    rows = {row["member"]: row for row in table["members"]}
    assert sorted(rows) == NAMES
    for name, values in zip(NAMES, itertools.product((4, 6), (0, 1)), strict=True):
        alone = losses_alone(workspace, tmp_path, monkeypatch, hidden_size=values[0], seed=values[1])
        assert rows[name]["val_loss"] == min(alone)
        assert rows[name]["epochs"] == len(alone)
        assert rows[name]["values"] == {"train.hidden_size": values[0], "train.seed": values[1]}
    assert list(table["test"]) == ["winner", "baseline"]
    assert table["winner"] == table["members"][0]["member"]
    assert table["verdict"].startswith("2 settings tried (4 members), too few val clips")
    assert stdout == (workspace / "reports/sweep/table.txt").read_text()
    with (workspace / "reports/sweep/table.csv").open(newline="") as file:
        assert [row["member"] for row in csv.DictReader(file)] == [row["member"] for row in table["members"]]
    assert (workspace / "reports/sweep/picture.png").stat().st_size > 1000
    assert [path.parts[-2] for path in workspace.glob("**/baseline/checkpoint.json")] == ["baseline"]


def test_a_sweep_that_was_interrupted_goes_on_to_the_same_table(workspace: Path, tmp_path: Path) -> None:
    other = make_workspace(tmp_path / "other", train={"learning_rate": 0.02})
    whole, _ = sweep(other, *GRID)
    with interrupted_after(6):  # in the second epoch of the four members
        _, stderr = sweep(workspace, *GRID, status=130)
    assert "Interrupted" in stderr
    assert not (workspace / "reports").exists()
    sweep(workspace, "grid", "-S", "train.hidden_size=4", *GRID[3:])
    with interrupted_after(9):  # two members are at their end
        stdout, stderr = sweep(workspace, *GRID, status=130)
    assert "Training resumes after epoch" in stderr
    assert [row["note"] for row in report(workspace)["members"]] == ["", "", *["stopped early"] * 2]
    assert "On the test clips" not in stdout
    sweep(workspace, *GRID)
    assert (workspace / "reports/sweep/table.txt").read_text() == whole
    with mock.patch.object(Trainings, "_train", side_effect=AssertionError):  # nothing is trained again
        assert sweep(workspace, *GRID)[0] == whole


@contextmanager
def interrupted_after(num_epochs: int) -> Iterator[None]:
    """Ctrl-C in the sweep, after so many epochs or more, once each member has had one."""
    shown: list[str] = []

    def interrupt(_: object, __: object, name: str, ___: object, **____: object) -> None:
        shown.append(name)
        if len(shown) >= num_epochs and set(shown) == set(NAMES):
            raise KeyboardInterrupt

    with mock.patch.object(stages.sweep, "_show_epoch", interrupt):
        yield


def test_with_halving_the_better_half_goes_on_as_if_alone(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "mine.yaml").write_text(
        yaml.safe_dump({"grid": {"train.hidden_size": [4, 6]}, "halving": {"rungs": [1, 3], "keep": 0.5}})
    )
    sweep(workspace, "mine.yaml", "-S", "train.seed=0,1", "--no-experiments")
    rows = report(workspace)["members"]
    alone = {
        (size, seed): losses_alone(workspace, tmp_path, monkeypatch, hidden_size=size, seed=seed)
        for size in (4, 6)
        for seed in (0, 1)
    }
    first = {size: (alone[size, 0][0] + alone[size, 1][0]) / 2 for size in (4, 6)}
    better, worse = sorted(first, key=first.__getitem__)
    assert [row["values"]["train.hidden_size"] for row in rows] == [better, better, worse, worse]
    assert [row["epochs"] for row in rows] == [4, 4, 1, 1]
    assert [row["note"] for row in rows] == ["", "", "stopped early", "stopped early"]
    for row in rows[:2]:
        assert row["val_loss"] == min(alone[better, row["values"]["train.seed"]])
    assert "1 not trained to the end" in report(workspace)["verdict"]


def test_a_sweep_with_halving_that_is_killed_again_and_again_ends_with_the_same_bytes(
    workspace: Path, tmp_path: Path
) -> None:
    (workspace / "mine.yaml").write_text("halving: {rungs: [1, 3], keep: 0.5}")
    other = shutil.copytree(workspace, tmp_path / "other")
    arguments = ("mine.yaml", *GRID[1:])
    sweep(other, *arguments)
    for number in (20, 60, 120):  # in the first rung, between the rungs, while results are written
        assert killed_at_change(number, run_main, stages.sweep.main, workspace, *arguments)
    sweep(workspace, *arguments)
    first, second = what_is_left(workspace), what_is_left(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def what_is_left(workspace: Path) -> dict[str, bytes]:
    """The report of a sweep, and what it has trained: results, and states of what has stopped early."""
    paths = [*workspace.glob("reports/sweep/*"), *workspace.glob(".framecache/training/**/*")]
    return {
        str(path.relative_to(workspace)): path.read_bytes()
        for path in paths
        if path.is_file() and path.suffix not in {".lock", ".tsv"}  # with the names of processes, with times
    }


def test_a_sweep_that_was_killed_while_it_writes_trains_nothing_again(workspace: Path) -> None:
    with mock.patch.object(stages.sweep_training, "write_trained", side_effect=KeyboardInterrupt):
        sweep(workspace, *GRID, status=130)
    _, stderr = sweep(workspace, *GRID)
    assert stderr.count("Training resumes after epoch 4") == 4
    assert list((workspace / ".framecache/training").glob("*.pt")) == []


def test_as_many_settings_are_trained_as_the_minutes_are_enough_for(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.sweep_training, "_PROBE_SECONDS", 0.0)
    _, stderr = sweep(workspace, *GRID, "--minutes", "1e-9", status=1)
    assert "No time is left for 2 settings" in stderr
    assert "No member was trained to its end (4 members: not trained)" in stderr
    seconds = 1.0
    monkeypatch.setattr(stages.sweep, "epoch_seconds", lambda *_: seconds)
    clock = SimpleNamespace(monotonic=itertools.count(step=0.75).__next__)
    monkeypatch.setattr(stages.sweep, "time", clock)
    sweep(workspace, *GRID, "--minutes", "0.15")  # 9 s for the 8 epochs of a setting, and not for 16
    names = [row["member"] for row in report(workspace)["members"] if row["note"] == ""]
    assert sorted(names) == NAMES[:2]
    assert [row["note"] for row in report(workspace)["members"][2:]] == ["not trained"] * 2
    seconds = 1e9
    sweep(workspace, *GRID, "--minutes", "0.15")  # those that are trained take no time
    assert [row["note"] for row in report(workspace)["members"]] == ["", "", "not trained", "not trained"]


def test_settings_that_end_early_leave_their_time_to_others(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.sweep, "epoch_seconds", lambda *_: 1.0)
    started: list[int] = []

    def train_until(_: Trainings, names: Sequence[str], __: object) -> dict[str, list[float]]:
        started.append(len(names))
        return {}

    monkeypatch.setattr(Trainings, "train_until", train_until)
    sweep(workspace, *GRID, "--minutes", "0.15", status=1)
    assert started == [2, 2]


def test_a_member_that_diverges_is_named_and_the_others_go_on(workspace: Path) -> None:
    _, stderr = sweep(workspace, "grid", "-S", "train.learning_rate=0.01,1e30", "--no-experiments")
    rows = report(workspace)["members"]
    assert [row["member"] for row in rows] == ["learning_rate=0.01", "learning_rate=1e+30"]
    assert rows[1]["note"] == "its loss is not finite"
    assert "learning_rate=1e+30: The loss is nan in epoch 0" in stderr


def test_without_git_a_sweep_names_the_way_out(workspace: Path) -> None:
    _, stderr = sweep(workspace, *GRID[:-1], status=1)
    assert "not a git repository" in stderr
    assert "A sweep with --no-experiments needs none." in stderr


def test_the_plan_names_groups_that_share_batches_and_the_time(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.sweep_training, "_PROBE_SECONDS", 0.0)
    stdout, _ = sweep(workspace, *GRID, "--plan")
    lines = stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["features/layer4", "manifests/toy.csv"]] * 2
    assert "4 members of 2 settings." in lines
    assert lines[-1].startswith("At most 16 epochs, ")
    assert not (workspace / "reports").exists()
    sweep(workspace, "grid", "-S", "train.hidden_size=4", *GRID[3:])
    stdout, _ = sweep(workspace, *GRID, "--plan")
    assert "2 of them are trained, and are not trained again:\n  {}\n  {}\n".format(*NAMES[:2]) in stdout


def test_the_epochs_of_a_sweep_are_counted_setting_by_setting() -> None:
    members = [
        SimpleNamespace(name=f"{epochs},{seed}", setting=str(epochs), config=SimpleNamespace(epochs=epochs))
        for epochs in (5, 10, 100)
        for seed in (0, 1)
    ]
    everything = SweepConfig.model_validate({"grid": {"train.seed": [0]}})
    assert num_epochs(members, everything) == 2 * (5 + 10 + 100)
    halving = SweepConfig.model_validate(
        {"grid": {"train.seed": [0]}, "halving": {"rungs": [2, 4], "keep": 0.5}}
    )
    assert num_epochs(members, halving) == 2 * (3 * 2 + 2 * 2 + 96)


def test_members_that_wait_for_others_count_in_the_time_of_a_sweep(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.sweep_training, "_PROBE_SECONDS", 0.0)
    clock = SimpleNamespace(monotonic=itertools.count().__next__)  # each batch takes a second
    monkeypatch.setattr(stages.sweep_training, "time", clock)
    grid = ("-S", "train.batch_size=100", "-S", "train.intra_op_threads=1,2")
    stdout, _ = sweep(workspace, "grid", *grid, "--no-experiments", "--plan")
    # One member has done two of its four batches when the time is taken. The other one counts as much.
    assert stdout.splitlines()[-1] == "At most 8 epochs, 0.50 s each: 4 s."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grid",), "-S: a sweep varies something: give grid, list or random."),
        (("grid", "-S", "train.seed"), "-S train.seed: give a key and its values"),
        (("grid", "-S", "train.seed=[1"), "-S train.seed=[1: give a key and its values"),
        (("grid", "-S", "train.cell=lstm,gr"), "-S: train.cell: 'gr' is not allowed."),
        (("none.yaml",), "No none.yaml in"),
    ],
)
def test_what_is_wrong_is_said_before_anything_trains(
    workspace: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in sweep(workspace, *arguments, status=1)[1]
    assert not (workspace / "journal/training").exists()
