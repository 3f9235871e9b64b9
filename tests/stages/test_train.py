"""The stages train and evaluate, run as users run them, on a small view of the real store."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import stages.bars
import stages.evaluate
import stages.train
from pipeline.backbone.weights import load_weights, save_weights
from pipeline.errors import ConfigError, NonFiniteError
from pipeline.learn.identity import input_digests, run_digest
from pipeline.learn.run import train
from pipeline.manifest import FrameLabel, write_manifest
from pipeline.settings.training import ModelName, TrainConfig
from pipeline.store import Journal, committing
from tests.support.extraction import random_weights
from tests.support.features import (
    clip_maps,
    clip_source,
    fill,
    frame_times,
    make_contract,
    make_layout,
    make_writer,
    publish_clips,
)
from tests.support.in_process import run_main
from tests.support.toy import make_clip
from tests.support.warm_python import warm_python

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SPLITS = ["train"] * 12 + ["val"] * 4 + ["test"] * 5
CLIP_IDS = [f"clip{number:02}" for number in range(len(SPLITS))]
TRAIN = {
    "hidden_size": 4,
    "projection": 3,
    "epochs": 4,
    "patience": None,
    "batch_size": 5,
}
LONG = {"epochs": 40}
MODELS = ("recurrent", "baseline")


def make_workspace(path: Path, *, train: dict[str, Any] | None = None, **contract_changes: object) -> Path:
    """params.yaml, a manifest of 21 clips, and features of all but clip03."""
    (path / "manifests").mkdir(parents=True)
    labels = ("down", "left", "up")
    write_manifest(
        path / "manifests/toy.csv",
        [
            make_clip(
                clip_id,
                split=split,
                label=labels[number % 3],
                values=(float(number), number / 7),
                frame_labels=(FrameLabel(0.0, 0.04, labels[number % 3]), FrameLabel(0.04, 0.08, "rest")),
            )
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
        "weights": {"arch": "resnet18", "source": "random:0"},
        "extract": {"taps": ["layer1", "layer4"]},
        "train": {**TRAIN, **train},
        "evaluate": {"num_resamples": 50},
    }
    (path / "machine.yaml").write_text("device: cpu")
    (path / "params.yaml").write_text(yaml.safe_dump(params))


def start(stage: str, workspace: Path, *, code: Path | None = None) -> "subprocess.Popen[str]":
    """Start a stage of this repository, or of the copy `code`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC")}
    return subprocess.Popen(
        [warm_python() / "python", "-m", f"stages.{stage}"],
        cwd=workspace,
        env={**environment, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(code)} if code else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(stage: str, workspace: Path, *, status: int = 0) -> tuple[str, str]:
    """What a stage, run in this process, writes to stdout and stderr."""
    found, stdout, stderr = run_main(getattr(stages, stage).main, workspace)
    assert found == status, stderr
    return stdout, stderr


def train_anew(workspace: Path, *, code: Path | None = None) -> str:
    """Train in a new process, as code that is imported is part of a run's identity; its stderr."""
    process = start("train", workspace, code=code)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return stderr


def read_table(path: Path, *, delimiter: str = ",") -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines(), delimiter=delimiter))


def outputs(workspace: Path) -> dict[str, bytes]:
    """All that the stage train leaves for DVC, except times."""
    files = [*workspace.glob("checkpoints/**/*"), *(workspace / f"reports/{model}.json" for model in MODELS)]
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
        "reports/recurrent.json",
        "reports/baseline.json",
        *(
            f"checkpoints/{model}/{file}"
            for model in ("recurrent", "baseline")
            for file in ("model.safetensors", "checkpoint.json")
        ),
        *(
            f"dvclive/train/{model}/plots/metrics/{split}/{metric}.tsv"
            for model in ("recurrent", "baseline")
            for split, metrics in (
                ("train", ("loss", "accuracy", "macro_f1", "ece")),
                ("val", ("loss", "accuracy", "macro_f1", "ece", "mAP")),
            )
            for metric in metrics
        ),
    }
    metrics = json.loads((workspace / "reports/recurrent.json").read_text())
    assert metrics["num_epochs"] == 4
    shown = json.loads((workspace / "metrics/recurrent.json").read_text())
    assert shown == {name: metrics[name] for name in ("val_accuracy", "val_loss")}
    curve = workspace / "dvclive/train/recurrent/plots/metrics/val/loss.tsv"
    losses = [float(row["loss"]) for row in read_table(curve, delimiter="\t")]
    assert len(losses) == 4
    assert losses[metrics["best_epoch"]] == pytest.approx(metrics["val_loss"])
    curves = read_table(workspace / "dvclive/train/recurrent/curves/loss.csv")
    assert [float(row["val"]) for row in curves] == pytest.approx(losses)
    only_val = read_table(workspace / "dvclive/train/recurrent/curves/mAP.csv")
    assert [(row["epoch"], row["train"]) for row in only_val] == [("0", ""), ("1", ""), ("2", ""), ("3", "")]
    assert "1 of 21 clips have no features and are left out: clip03" in stderr


def test_nothing_of_a_finished_run_is_left_but_its_outputs(trained):
    workspace, _ = trained
    assert not list(workspace.glob(".framecache/training/*.pt"))


def test_evaluate_measures_model_shuffled_control_and_baseline_on_the_test_split(trained):
    workspace, _ = trained
    stdout, _ = run("evaluate", workspace)
    metrics = json.loads((workspace / "reports/evaluate.json").read_text())
    shown = json.loads((workspace / "metrics/evaluate.json").read_text())
    assert shown == {
        "accuracy": metrics["recurrent"]["accuracy"],
        "shuffled": metrics["shuffled"]["accuracy"],
        "baseline": metrics["baseline"]["accuracy"],
    }
    confusion = read_table(workspace / "plots/confusion.csv")
    assert [row["clip_id"] for row in confusion] == CLIP_IDS[-5:]
    hits = sum(row["actual"] == row["predicted"] for row in confusion)
    assert metrics["recurrent"]["accuracy"] == pytest.approx(hits / 5)
    low, high = metrics["recurrent"]["intervals"]["accuracy"]
    assert low <= metrics["recurrent"]["accuracy"] <= high
    assert {name: values["num_clips"] for name, values in metrics.items()} == {
        "recurrent": 5,
        "shuffled": 5,
        "baseline": 5,
    }
    assert metrics["shuffled"]["loss"] != metrics["recurrent"]["loss"]
    classes = read_table(workspace / "plots/classes.csv")
    assert [row["class"] for row in classes] == ["down", "left", "up"]
    assert stdout == (workspace / "reports/evaluate.txt").read_text()
    header, *rows, empty, better, sentence = stdout.splitlines()
    assert header.split() == ["loss", "accuracy", "macro", "f1", "ece", "mAP", "clips"]
    names = ["LSTM  ", "LSTM, frames shuffled  ", "mean-pool + linear  "]
    assert all(row.startswith(name) for row, name in zip(rows, names, strict=True))
    assert empty == ""
    assert better.startswith("Against mean-pool + linear: accuracy ")
    assert sentence.startswith("In order against shuffled: accuracy ")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    workspace = make_workspace(tmp_path_factory.mktemp("undisturbed"), train=LONG)
    run("train", workspace)
    return outputs(workspace)


def kill_in_the_middle(workspace: Path, *, model: str, code: Path | None = None) -> str:
    """Train until a state of this model's training is kept, then kill the process; its stderr."""
    process = start("train", workspace, code=code)
    while not list(workspace.glob(f".framecache/training/{model}-*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workspace / "reports/baseline.json").exists()
    return stderr


def test_the_progress_of_a_stage_in_a_pipe_is_plain_lines(trained, monkeypatch):
    monkeypatch.setattr(stages.bars, "_LINE_SECONDS", 0.0)
    _, stderr = run("evaluate", trained[0])
    assert not re.search(r"[\r\x1b]", stderr)
    for model in ("recurrent", "shuffled", "baseline"):
        assert re.search(rf"^{model}: 100% 1/1 \[.*\]$", stderr, re.MULTILINE)


def test_train_killed_in_the_middle_continues_to_the_same_outputs_unless_its_configuration_is_another(
    tmp_path, undisturbed
):
    workspace = make_workspace(tmp_path / "workspace", train=LONG)
    kill_in_the_middle(workspace, model="recurrent")
    other = shutil.copytree(workspace, tmp_path / "other")
    assert "Training resumes after epoch" in kill_in_the_middle(workspace, model="baseline")
    assert "Training resumes after epoch" in train_anew(workspace)
    assert outputs(workspace) == undisturbed

    write_params(other, train={"learning_rate": 0.5})
    assert "resumes" not in train_anew(other)


def test_a_run_is_not_resumed_by_other_code_that_it_imports(tmp_path):
    code = tmp_path / "code"
    for name in ("pipeline", "stages"):
        shutil.copytree(REPOSITORY / name, code / name)
    workspace = make_workspace(tmp_path / "workspace", train=LONG)
    kill_in_the_middle(workspace, model="recurrent", code=code)
    path = code / "pipeline/learn/tasks/classification.py"
    old, new = "self.focal_gamma), weights\n", "self.focal_gamma) * 3, weights\n"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))
    assert "resumes" not in train_anew(workspace, code=code)
    curve = workspace / "dvclive/train/recurrent/plots/metrics/train/loss.tsv"
    losses = [float(row["loss"]) for row in read_table(curve, delimiter="\t")]
    assert len(losses) == LONG["epochs"]
    assert losses[0] == pytest.approx(3 * np.log(3), rel=0.2)  # of three classes, before it has learned


def test_another_corpus_or_configuration_never_finds_the_state_of_a_run(tmp_path):
    def folder(
        name: str,
        *,
        label: str = "up",
        config: TrainConfig | None = None,
        model: ModelName = "recurrent",
        **contract: object,
    ) -> str:
        workspace = make_workspace(tmp_path / name, **contract)
        manifest = workspace / "manifests/toy.csv"
        manifest.write_text(manifest.read_text().replace("up", label))
        inputs = input_digests(workspace / "features/layer4", manifest)
        return run_digest(config or TrainConfig(), model, inputs)

    assert folder("a") == folder("b")
    assert folder("c", model="baseline") == folder("d", model="baseline", config=TrainConfig(cell="gru"))
    others = {
        folder("e", label="above"),
        folder("f", weights_sha256="1" * 64),
        folder("g", config=TrainConfig(seed=1)),
        folder("h", config=TrainConfig(cell="gru")),
        folder("i", model="baseline"),
    }
    assert len(others | {folder("j")}) == 6


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
        ({"tap": "layer3"}, "train.tap: 'layer3' is not among extract.taps (layer1, layer4)"),
        ({"cell": "perceptron"}, "train.cell: 'perceptron' is not allowed"),
        ({"scan_size": 2}, "params.yaml: train: scan_size 2 does nothing: it needs scan horizontal_strips"),
        ({"hiden_size": 3}, "unknown key 'train.hiden_size'"),
    ],
)
def test_a_wrong_parameter_is_one_clear_message(tmp_path, train, message):
    _, stderr = run("train", make_workspace(tmp_path, train=train), status=1)
    assert message in stderr
    assert "Traceback" not in stderr


def run_here(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """Train and evaluate in this process; what evaluate measured."""
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["stage"])
    stages.train.main()
    stages.evaluate.main()
    for pattern in ("metrics/*.json", "reports/*.json", "checkpoints/*/*.json"):
        for path in Path().glob(pattern):
            read_strictly(path)
    metrics: dict[str, dict[str, Any]] = read_strictly(Path("reports/evaluate.json"))
    return metrics


def read_strictly(path: Path) -> Any:
    """JSON, which has no NaN and no Infinity."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{path} has {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_frames_are_labelled_and_windows_of_a_clip_are_one_clip(tmp_path, monkeypatch):
    train = {"task": "frame_labels", "window": 3, "stride": 2, "scan": "rows", "class_weights": "balanced"}
    metrics = run_here(make_workspace(tmp_path, train=train), monkeypatch)
    assert metrics["recurrent"]["num_clips"] == 5
    # Of each clip's frames at 0, 0.04, 0.08, ... s the first two have labels.
    rows = read_table(tmp_path / "plots/confusion.csv")
    assert [row["clip_id"] for row in rows] == [clip_id for clip_id in CLIP_IDS[-5:] for _ in range(2)]
    labels = ["left", "up", "down", "left", "up"]
    assert [row["actual"] for row in rows] == [name for label in labels for name in (label, "rest")]
    hits = sum(row["actual"] == row["predicted"] for row in rows)
    assert metrics["recurrent"]["accuracy"] == pytest.approx(hits / 10)


def test_frames_whose_labels_lie_between_them_leave_metrics_undefined_and_not_nan(tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path, train={"task": "frame_labels"})
    manifest = workspace / "manifests/toy.csv"
    manifest.write_text(manifest.read_text().replace("0.0-0.04:", "0.01-0.02:").replace("0.04-", "0.05-"))
    metrics = run_here(workspace, monkeypatch)
    assert metrics["recurrent"]["accuracy"] is None
    assert metrics["recurrent"]["intervals"]["accuracy"] is None
    assert read_strictly(workspace / "reports/recurrent.json")["val_accuracy"] is None
    assert read_strictly(workspace / "metrics/evaluate.json")["accuracy"] is None
    assert "nan" not in (workspace / "reports/evaluate.txt").read_text()
    assert not list(workspace.glob("dvclive/**/accuracy.tsv"))


@pytest.mark.parametrize(("number", "stage"), [(2, "train"), (13, "train"), (18, "evaluate")])
@pytest.mark.parametrize("resident_mb", [0, 2048])
def test_features_that_are_not_finite_end_a_stage_with_the_name_of_their_clip(
    tmp_path, monkeypatch, number, stage, resident_mb
):
    workspace = make_workspace(tmp_path, train={"epochs": 1})
    (workspace / "machine.yaml").write_text(f"{{device: cpu, resident_mb: {resident_mb}}}")
    if stage == "evaluate":
        run_here(workspace, monkeypatch)
    contract = make_contract()
    journal, layout = Journal(workspace / "journal2"), make_layout(contract)
    writer = make_writer(journal, contract, layout)
    with committing(writer):
        for i, clip_id in enumerate(CLIP_IDS):
            maps = clip_maps(clip_id, 4)
            maps[2] = np.inf if i == number else maps[2]
            writer.append(clip_source(clip_id), maps, frame_times(4), final=True)
    publish_clips(journal, contract, layout, CLIP_IDS, workspace / "features")
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "argv", ["stage"])
    message = rf"^features/layer4: the features of {CLIP_IDS[number]} have values that are infinite or NaN\."
    with pytest.raises(NonFiniteError, match=message):
        getattr(stages, stage).main()


def test_several_values_are_predicted_in_their_units(tmp_path, monkeypatch):
    train = {"task": "regression", "monitor": "rmse", "optimizer": "sgd", "summary": "attention"}
    workspace = make_workspace(tmp_path, train=train)
    of_another_task = ("dvclive/train/recurrent/curves/accuracy.csv", "plots/classes.csv")
    for path in (workspace / name for name in of_another_task):
        path.parent.mkdir(parents=True)
        path.touch()
    metrics = run_here(workspace, monkeypatch)
    assert not any((workspace / name).exists() for name in of_another_task)
    for name in ("comparison", "attention"):
        assert (tmp_path / f"plots/images/{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = read_table(tmp_path / "plots/values.csv")
    assert [float(row["actual"]) for row in rows[:2]] == pytest.approx([16, 16 / 7], abs=1e-5)
    errors = [abs(float(row["actual"]) - float(row["predicted"])) for row in rows]
    assert metrics["recurrent"]["mae_1"] == pytest.approx(sum(errors[::2]) / 5)
    assert metrics["recurrent"]["mae_2"] == pytest.approx(sum(errors[1::2]) / 5)
    sentence = (tmp_path / "reports/evaluate.txt").read_text().splitlines()[-1]
    assert sentence.startswith("In order against shuffled: rmse ")


def test_a_tail_is_trained_from_the_weights_of_the_cached_features_and_evaluated(tmp_path, monkeypatch):
    workspace = make_workspace(tmp_path, train={"tap": "layer1", "tail": "layer2", "epochs": 2})
    save_weights(
        random_weights(),
        path=workspace / "weights/resnet18.safetensors",
    )
    weights = load_weights(workspace / "weights/resnet18.safetensors")
    contract = make_contract(tap="layer1", weights_sha256=weights.sha256)
    journal, layout = Journal(workspace / "journal"), make_layout(contract, row_shape=(64, 2, 2))
    rng = np.random.default_rng(0)
    writer = make_writer(journal, contract, layout)
    with committing(writer):
        for clip_id in CLIP_IDS:
            maps = rng.standard_normal((3, 64, 2, 2)).astype(np.float16)
            writer.append(clip_source(clip_id), maps, frame_times(3), final=True)
    publish_clips(journal, contract, layout, CLIP_IDS, workspace / "features")
    metrics = run_here(workspace, monkeypatch)
    assert metrics["recurrent"]["num_clips"] == 5
    trained = load_file(workspace / "checkpoints/recurrent/model.safetensors")
    for name, initial in weights.state.items():
        if name.startswith("layer2."):
            value = trained[f"steps.tail.layers.0.{name.removeprefix('layer2.')}"]
            assert torch.equal(value, initial) == ("running_" in name), name
            torch.testing.assert_close(value, initial, rtol=0, atol=1e-3)
    # Standardised by what the tail gave before it was trained: of both models the same.
    baseline = load_file(workspace / "checkpoints/baseline/model.safetensors")
    assert torch.equal(trained["steps.standardise.mean"], baseline["steps.standardise.mean"])
    assert trained["steps.standardise.mean"].shape == (128, 1, 1)


def test_a_tail_of_pooled_features_is_refused(tmp_path):
    workspace = make_workspace(tmp_path, pooling="avg")
    with pytest.raises(ConfigError, match=r"tail 'avgpool' reads whole maps, .* are pooled \(avg\)\."):
        train(
            workspace / "features/layer4",
            workspace / "manifests/toy.csv",
            config=TrainConfig(tail="avgpool"),
            state=tmp_path / "state",
        )


def test_a_tail_without_its_weights_says_which(tmp_path):
    _, stderr = run("train", make_workspace(tmp_path, train={"tail": "avgpool"}), status=1)
    assert (
        "error: weights/resnet18.safetensors does not have the weights of the resnet18 that made the features"
        in stderr
    )
    assert f"sha256 {'0' * 64})" in stderr
    assert "run `python -m stages.weights`" in stderr
