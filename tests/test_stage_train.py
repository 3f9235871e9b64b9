"""The stages train and evaluate, run as users run them, on a small view of the real store."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.manifest import write_manifest
from pipeline.store import Journal
from tests.features import fill, make_contract, make_layout, publish_clips
from tests.toy import make_clip

REPOSITORY = Path(__file__).parents[1]
SPLITS = ["train"] * 12 + ["val"] * 4 + ["test"] * 5
CLIP_IDS = [f"clip{number:02}" for number in range(len(SPLITS))]
TRAIN = {
    "hidden_size": 4,
    "projection": 3,
    "epochs": 4,
    "patience": None,
    "batch_size": 5,
    "device": "cpu",
}
LONG = {"epochs": 40}


def make_workspace(path: Path, *, train: dict[str, Any] | None = None, **contract_changes: object) -> Path:
    """params.yaml, a manifest of 21 clips, and features of all but clip03."""
    (path / "manifests").mkdir(parents=True)
    labels = ("down", "left", "up")
    write_manifest(
        path / "manifests/toy.csv",
        [
            make_clip(clip_id, split=split, label=labels[number % 3])
            for number, (clip_id, split) in enumerate(zip(CLIP_IDS, SPLITS, strict=True))
        ],
    )
    lengths = {clip_id: 2 + number % 4 for number, clip_id in enumerate(CLIP_IDS) if clip_id != "clip03"}
    contract = make_contract(**contract_changes)
    journal, layout = Journal(path / "journal"), make_layout(contract)
    fill(journal, contract, layout, lengths)
    publish_clips(journal, contract, layout, list(lengths), path / "features")
    write_params(path, train=train or {})
    return path


def write_params(path: Path, *, train: dict[str, Any]) -> None:
    params = {
        "corpus": {"manifest": "manifests/toy.csv", "root": "/nowhere"},
        "train": {**TRAIN, **train},
        "evaluate": {"device": "cpu"},
    }
    (path / "params.yaml").write_text(yaml.safe_dump(params))


def start(stage: str, workspace: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=workspace,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("DVC")},
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(stage: str, workspace: Path, *, status: int = 0) -> tuple[str, str]:
    process = start(stage, workspace)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == status, stderr
    return stdout, stderr


def read_table(path: Path, *, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(), delimiter=delimiter))


def outputs(workspace: Path) -> dict[str, bytes]:
    """All that the stage train leaves for DVC, except times."""
    files = [*workspace.glob("checkpoints/**/*"), *workspace.glob("metrics/train.json")]
    found = {str(path.relative_to(workspace)): path.read_bytes() for path in files if path.is_file()}
    for path in workspace.glob("dvclive/**/*.tsv"):
        values = [(row["step"], row[path.stem]) for row in read_table(path, delimiter="\t")]
        found[str(path.relative_to(workspace))] = repr(values).encode()
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    workspace = make_workspace(tmp_path_factory.mktemp("trained"))
    _, stderr = run("train", workspace)
    return workspace, stderr


def test_train_writes_checkpoints_metrics_and_curves(trained):
    workspace, stderr = trained
    assert set(outputs(workspace)) == {
        "metrics/train.json",
        *(
            f"checkpoints/{model}/{file}"
            for model in ("recurrent", "baseline")
            for file in ("model.safetensors", "checkpoint.json")
        ),
        *(
            f"dvclive/train/{model}/plots/metrics/{split}/{metric}.tsv"
            for model in ("recurrent", "baseline")
            for split in ("train", "val")
            for metric in ("loss", "accuracy", "macro_f1")
        ),
    }
    metrics = json.loads((workspace / "metrics/train.json").read_text())
    assert metrics["recurrent"]["num_epochs"] == 4
    curve = workspace / "dvclive/train/recurrent/plots/metrics/val/loss.tsv"
    losses = [float(row["loss"]) for row in read_table(curve, delimiter="\t")]
    assert len(losses) == 4
    assert losses[metrics["recurrent"]["best_epoch"]] == pytest.approx(metrics["recurrent"]["val_loss"])
    assert "1 of 21 clips have no features and are left out: clip03" in stderr


def test_nothing_of_a_finished_run_is_left_but_its_outputs(trained):
    workspace, _ = trained
    assert not list(workspace.glob(".framecache/training/*/"))


def test_evaluate_measures_both_models_on_the_test_split(trained):
    workspace, _ = trained
    stdout, _ = run("evaluate", workspace)
    metrics = json.loads((workspace / "metrics/evaluate.json").read_text())
    confusion = read_table(workspace / "plots/confusion.csv")
    assert [row["clip_id"] for row in confusion] == CLIP_IDS[-5:]
    hits = sum(row["actual"] == row["predicted"] for row in confusion)
    assert metrics["recurrent"]["accuracy"] == pytest.approx(hits / 5)
    assert metrics["recurrent"]["num_clips"] == metrics["baseline"]["num_clips"] == 5
    classes = read_table(workspace / "plots/classes.csv")
    assert [row["class"] for row in classes] == ["down", "left", "up"]
    assert stdout == (workspace / "reports/evaluate.txt").read_text()
    header, first, second = stdout.splitlines()
    assert header.split() == ["loss", "accuracy", "macro", "f1", "num", "clips"]
    assert first.startswith("LSTM ")
    assert second.startswith("mean-pool + linear ")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    workspace = make_workspace(tmp_path_factory.mktemp("undisturbed"), train=LONG)
    run("train", workspace)
    return outputs(workspace)


def kill_in_the_middle(workspace: Path, *, model: str) -> None:
    process = start("train", workspace)
    while not list(workspace.glob(f".framecache/training/*/{model}.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workspace / "metrics/train.json").exists()


@pytest.mark.parametrize("model", ["recurrent", "baseline"])
def test_train_killed_in_the_middle_continues_to_the_same_outputs(tmp_path, undisturbed, model):
    workspace = make_workspace(tmp_path, train=LONG)
    kill_in_the_middle(workspace, model=model)
    _, stderr = run("train", workspace)
    assert "Training resumes after epoch" in stderr
    assert outputs(workspace) == undisturbed


def test_another_configuration_does_not_resume_the_run(tmp_path):
    workspace = make_workspace(tmp_path, train=LONG)
    kill_in_the_middle(workspace, model="recurrent")
    write_params(workspace, train={"learning_rate": 0.5})
    _, stderr = run("train", workspace)
    assert "resumes" not in stderr


def test_evaluate_refuses_features_made_otherwise(trained, tmp_path):
    workspace, _ = trained
    other = make_workspace(tmp_path / "other", weights_sha256="1" * 64)
    (other / "checkpoints").symlink_to(workspace / "checkpoints")
    _, stderr = run("evaluate", other, status=1)
    assert f"weights_sha256 is '{'1' * 64}', the model needs '{'0' * 64}'" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"tap": "layer3"}, "No features at features/layer3"),
        ({"cell": "transformer"}, "train.cell: 'transformer' is not allowed"),
        ({"hiden_size": 3}, "unknown key 'train.hiden_size'"),
    ],
)
def test_a_wrong_parameter_is_one_clear_message(tmp_path, train, message):
    _, stderr = run("train", make_workspace(tmp_path, train=train), status=1)
    assert message in stderr
    assert "Traceback" not in stderr
