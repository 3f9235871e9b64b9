"""The stage compare, run as users run it: members of a sweep, checkpoints, experiments of the real DVC."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import yaml

import stages.compare
import stages.sweep
from pipeline.learn.checkpoint import Checkpoint
from pipeline.learn.comparison import answer_split, evaluate
from pipeline.manifest import FrameLabel, write_manifest
from pipeline.settings.evaluation import EvaluateConfig
from stages.evaluate import write_results
from stages.params import Params
from stages.project.experiments import open_experiments
from stages.run_names import NamedRun
from tests.stages.test_experiments import TRAIN, asked, of_git, train_here
from tests.stages.test_train import make_workspace
from tests.support.checkpoints import TASKS
from tests.support.configs import live_config
from tests.support.features import MAP_SHAPE, make_contract, make_view
from tests.support.in_process import run_main
from tests.support.project import Project
from tests.support.runs import make_run
from tests.support.toy import make_clip

SWEEP = "sweeps/toy.yaml"
NAMES = ["hidden_size=4", "hidden_size=6"]


def compare(folder: Path, *arguments: object, status: int = 0) -> str:
    """What the stage prints, or with another status the message of its error."""
    found, stdout, stderr = run_main(stages.compare.main, folder, *map(str, arguments))
    assert found == status, stderr
    return stderr if status else stdout


def compared(folder: Path, *arguments: object) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(compare(folder, *arguments, "--json"))
    return content


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with two trained members of a sweep."""
    workspace = make_workspace(tmp_path_factory.mktemp("compare") / "workspace", train={"epochs": 2})
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("num_resamples: 50", "num_resamples: 1000"))  # as compare's
    (workspace / "sweeps").mkdir()
    (workspace / SWEEP).write_text(yaml.safe_dump({"grid": {"train.hidden_size": [4, 6]}}))
    status, _, stderr = run_main(stages.sweep.main, workspace, SWEEP, "--no-experiments")
    assert status == 0, stderr
    return workspace


def folders(workspace: Path) -> dict[int, Path]:
    """The checkpoint of each member, by its hidden size."""
    found = workspace.glob(".framecache/training/sweeps/*/checkpoints/recurrent")
    return {
        json.loads((path / "checkpoint.json").read_text())["config"]["hidden_size"]: path for path in found
    }


@pytest.mark.slow
def test_members_of_a_sweep_are_compared_as_in_its_own_table(swept: Path) -> None:
    table = json.loads((swept / "reports/sweep/table.json").read_text())
    content = compared(swept, SWEEP, "--html", "page.html", "--csv", "table.csv")
    page = (swept / "page.html").read_text()
    assert content["claim"] in page
    assert all(f"<bdi>{name}</bdi>" in page for name in NAMES)
    assert (swept / "table.csv").read_text().count("\n") == 3
    assert (content["split"], content["num_clips"]) == ("val", table["num_val_clips"])
    assert content["optimism"] == table["optimism"]
    assert content["settings"] == {"train.hidden_size": {name: name[-1] for name in NAMES}}
    rows = {row["run"]: row for row in content["runs"]}
    for member in table["members"]:
        row = rows[member["member"]]
        assert row["accuracy"] == member["val_accuracy"]
        assert row["loss"] == pytest.approx(member["val_loss"])
        assert (row["from"], row["to"]) == (member["low"], member["high"])
        assert row["is_distinguishable"] == (member["is_distinguishable"] if row["difference"] else None)


@pytest.mark.slow
def test_models_answer_as_the_settings_of_their_evaluation_say(swept: Path, tmp_path: Path) -> None:
    workspace = shutil.copytree(swept, tmp_path / "workspace", symlinks=True)
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("num_resamples:", "chunk_frames: 3\n  num_resamples:"))
    with mock.patch.object(stages.compare, "answer_split", wraps=answer_split) as answering:
        compare(workspace, SWEEP)
    assert [call.kwargs["config"] for call in answering.call_args_list] == [
        EvaluateConfig(split="val", chunk_frames=3, num_resamples=1000)
    ] * 2


def test_answers_are_cleaned_as_the_settings_of_the_evaluation_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_view(tmp_path, {"a": 9})
    labels = (FrameLabel(0.0, 1.0, "left"),)
    clips = [make_clip(f"{split}", split=split, frame_labels=labels) for split in ("train", "test")]
    write_manifest(Path("toy.csv"), [make_clip("a", split="val", frame_labels=labels), *clips])
    config = live_config(task="frame_labels", tap="layer4", hidden_size=4, projection=3)
    model = TASKS["frame_labels"].build_model("recurrent", config, map_shapes=[MAP_SHAPE], seed=1).eval()
    torch.nn.init.zeros_(model.head.bias)  # no label is always the likeliest
    checkpoint = Checkpoint(
        "recurrent", model, TASKS["frame_labels"], config, (make_contract(),), (MAP_SHAPE,), {}
    )
    num_labels = []
    for settings in ({}, {"evaluate.min_seconds": 1.0}):
        run = make_run("a", None, settings=settings, task="frame_labels")
        found = stages.compare._answered(
            NamedRun(run, lambda: checkpoint), split="val", manifest=Path("toy.csv")
        )
        num_labels.append(len(set(found.run.predictions["answer"].to_pylist())))
    assert num_labels[0] > num_labels[1] == 1


@pytest.mark.slow
def test_checkpoints_are_compared_on_any_split_and_manifest(swept: Path, tmp_path: Path) -> None:
    first, second = (folders(swept)[size] for size in (4, 6))
    content = compared(swept, first, second / "model.safetensors", "--split", "test")
    assert (content["split"], content["num_clips"]) == ("test", 5)
    assert {row["run"] for row in content["runs"]} == {str(first), str(second)}
    assert content["settings"] == {"train.hidden_size": {str(first): "4", str(second): "6"}}
    lines = (swept / "manifests/toy.csv").read_text().splitlines()
    (tmp_path / "less.csv").write_text("\n".join(lines[:-1]))
    arguments = (str(first), str(second), "--split=test", f"--manifest={tmp_path / 'less.csv'}", "--json")
    _, stdout, stderr = run_main(stages.compare.main, swept, *arguments)
    assert json.loads(stdout)["num_clips"] == 4
    assert f"warning: {first} was trained with another manifest than {tmp_path / 'less.csv'} is now" in stderr


@pytest.mark.slow
def test_names_that_stand_for_no_run_are_refused(swept: Path, tmp_path: Path) -> None:
    checkpoint = folders(swept)[4]
    message = compare(swept, SWEEP, checkpoint, status=1)
    assert (
        message
        == f"error: hidden_size=4 and {checkpoint} are the same run: their settings and answers are equal.\n"
    )
    assert compare(swept, checkpoint, status=1) == "error: Comparing takes at least two runs.\n"
    message = compare(swept, checkpoint, "manifests", status=1)
    assert message.startswith("error: manifests is no checkpoint: checkpoint.json is not in it. ")
    message = compare(swept, checkpoint, "workspace", status=1)
    assert message.startswith(
        "error: workspace: there is no checkpoints/recurrent/checkpoint.json. `dvc repro`"
    )
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({"grid": {"train.hidden_size": [7]}}))
    message = compare(swept, tmp_path / "other.yaml", status=1)
    assert message == (
        f"error: No member of {tmp_path / 'other.yaml'} is trained: run `python -m stages.sweep"
        f" {tmp_path / 'other.yaml'}` first.\n"
    )


@pytest.fixture
def experiments(project: Project, tmp_path: Path) -> Project:
    """A project with two experiments: `wide` is evaluated, `narrow` is as a member of a sweep."""
    with contextlib.chdir(project.path), open_experiments() as found:
        for name, size, stages_done in (
            ("wide", 16, [*TRAIN, "train@baseline", "evaluate"]),
            ("narrow", 8, TRAIN),
        ):
            document, folder = asked(project, hidden_size=size), tmp_path / name
            train_here(project, document, folder)
            if "evaluate" in stages_done:
                for out in ("checkpoints/baseline", "dvclive/train/baseline"):
                    shutil.copytree(out, folder / out)
                for out in ("metrics/baseline.json", "reports/baseline.json"):
                    shutil.copyfile(out, folder / out)
                params = Params.model_validate(document)
                evaluation = evaluate(
                    folder / "checkpoints", "features/layer4", params.corpus.manifest, config=params.evaluate
                )
                write_results(evaluation, folder=folder)
            found.save(name, document, folder, stages=stages_done)
    return project


@pytest.mark.slow
def test_experiments_are_compared_without_touching_the_workspace(
    experiments: Project, tmp_path: Path
) -> None:
    folder = experiments.path
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if ".dvc" not in path.parts}
    content = compared(folder, "main", "wide")
    assert (content["split"], content["num_clips"]) == ("test", 2)
    assert content["settings"] == {"train.hidden_size": {"main": "128", "wide": "16"}}
    rows = {row["run"]: row["accuracy"] for row in content["runs"]}
    for name, place in (("main", folder), ("wide", tmp_path / "wide")):
        assert rows[name] == json.loads((place / "metrics/evaluate.json").read_text())["accuracy"]

    content = compared(folder, "workspace", "narrow")  # which is not evaluated
    assert content["split"] == "val"
    rows = {row["run"]: row for row in content["runs"]}
    for name, place in (("workspace", folder), ("narrow", tmp_path / "narrow")):
        recorded = json.loads((place / "metrics/recurrent.json").read_text())
        assert rows[name]["accuracy"] == recorded["val_accuracy"]
        assert rows[name]["loss"] == pytest.approx(recorded["val_loss"])

    message = compare(folder, "main", "workspace", status=1)
    assert message == "error: main and workspace are the same run: their settings and answers are equal.\n"
    message = compare(folder, "main", "wyde", status=1)
    assert message.startswith("error: There is no experiment or revision 'wyde'. Near: wide. ")
    assert files == {path: path.stat().st_mtime_ns for path in folder.rglob("*") if ".dvc" not in path.parts}
    assert of_git(experiments, "status", "--short") == ""  # git writes to its index
    shutil.rmtree(folder / ".dvc/cache/files")
    message = compare(folder, "main", "wide", status=1)
    assert message.startswith(
        "error: main: checkpoints/recurrent/checkpoint.json is not in DVC's cache. Fetch it: `dvc exp pull"
    )
