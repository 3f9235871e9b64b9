"""The stage folds, run as users run it, on a small view of the real store."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import stages.compare
import stages.folds
from pipeline.corpora import draw_folds
from pipeline.learn.checkpoint import load_checkpoint
from pipeline.learn.comparison import evaluate
from pipeline.learn.run import train
from pipeline.manifest import read_manifest, write_manifest
from pipeline.settings.machine import Machine
from stages.params import read_params
from tests.stages.test_train import make_workspace
from tests.support.in_process import run_main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.mktemp("folds") / "workspace", train={"learning_rate": 0.02})


def test_each_fold_is_trained_and_tested_as_if_alone(workspace, tmp_path, monkeypatch) -> None:
    status, stdout, stderr = run_main(stages.folds.main, workspace, "--number", "3")
    assert status == 0, stderr
    report = json.loads((workspace / "reports/folds.json").read_text())
    monkeypatch.chdir(workspace)
    params, machine = read_params(), Machine(device="cpu")
    values: dict[str, list[float]] = {"recurrent": [], "shuffled": [], "baseline": []}
    for number, fold in enumerate(draw_folds(list(read_manifest("manifests/toy.csv")), 3), start=1):
        manifest, path = tmp_path / f"{number}.csv", tmp_path / str(number)
        write_manifest(manifest, fold)
        train(
            "features/layer4",
            manifest,
            config=params.train,
            machine=machine,
            checkpoints=path,
            state=tmp_path,
        )
        evaluation = evaluate(path, "features/layer4", manifest, config=params.evaluate, machine=machine)
        for model, score in evaluation.scores.items():
            values[model].append(score.values()["accuracy"])
            assert report[model]["folds"][str(number)] == values[model][-1]
        kept = load_checkpoint(Path(f"checkpoints/folds/{number}/recurrent")).model.state_dict()
        for key, value in load_checkpoint(path / "recurrent").model.state_dict().items():
            assert (kept[key] == value).all()
    metrics = json.loads(Path("metrics/folds.json").read_text())
    assert metrics["folds_accuracy"] == pytest.approx(np.mean(values["recurrent"]))
    assert metrics["folds_deviation"] == pytest.approx(np.std(values["recurrent"], ddof=1))
    assert metrics["folds_baseline"] == pytest.approx(np.mean(values["baseline"]))
    assert metrics["folds_low"] <= metrics["folds_accuracy"] <= metrics["folds_high"]
    assert stdout == Path("reports/folds.txt").read_text()
    assert "accuracy on the test clips of 3 folds" in stdout


def test_seeds_are_averaged_and_compared_and_nothing_is_trained_twice(
    workspace, tmp_path, monkeypatch
) -> None:
    run_main(stages.folds.main, workspace, "--number", "3")
    before = json.loads((workspace / "metrics/folds.json").read_text())
    shutil.copytree(workspace / "checkpoints/folds", tmp_path / "one")
    monkeypatch.setattr(stages.sweep_training, "train_many", refuse_seed_0 := SeedOnly(1))
    status, stdout, stderr = run_main(stages.folds.main, workspace, "--number", "3", "--seeds", "0", "1")
    assert status == 0, stderr
    assert refuse_seed_0.num_calls == 2  # of three folds together: the model, and the baseline
    assert "mean of 2 seeds" in stdout
    names = sorted(path.name for path in (workspace / "checkpoints/folds").iterdir())
    assert [f"{fold},seed={seed}" for fold in "123" for seed in (0, 1)] == names
    runs = (str(tmp_path / "one"), "checkpoints/folds")
    status, stdout, stderr = run_main(stages.compare.main, workspace, *runs, "--json")
    assert status == 0, stderr
    after = json.loads((workspace / "metrics/folds.json").read_text())
    rows = {row["run"]: row["accuracy"] for row in json.loads(stdout)["runs"]}
    assert [rows[run] for run in runs] == pytest.approx([each["folds_accuracy"] for each in (before, after)])
    for arguments, message in (
        (
            ["--split", "val"],
            "models of folds are compared on the test clips of their folds, and on no others",
        ),
        (["--html", "page.html"], "a page shows the clips of one split"),
    ):
        status, _, stderr = run_main(stages.compare.main, workspace, *runs, *arguments)
        assert status
        assert message in stderr


class SeedOnly:
    """`train_many` that must not be asked for another seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.num_calls, self.train_many = seed, 0, stages.sweep_training.train_many

    def __call__(self, features, members, **options):
        assert {member.config.seed for member in members} == {self.seed}
        self.num_calls += 1
        return self.train_many(features, members, **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--number", "2"], "2 folds: give from 3"),
        (["--columns", "split1"], "no column 'split1'. Columns of folds are: none"),
    ],
)
def test_impossible_folds_are_one_sentence(workspace, arguments, message) -> None:
    status, _, stderr = run_main(stages.folds.main, workspace, *arguments)
    assert status == 1
    assert message in stderr
    assert "Traceback" not in stderr
