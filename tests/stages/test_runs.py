"""Runs are read from the files that the stages leave, without training any."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RunError
from pipeline.report.runs import Curve
from pipeline.report.tables import write_predictions
from pipeline.settings.extract import Limits
from pipeline.settings.training import TrainConfig
from pipeline.system.files import write_json
from stages.params import Params
from stages.project.runs import WORKSPACE, folder_files, load_run
from stages.resolution import resolved, write_settings
from tests.support.features import make_contract
from tests.support.runs import answer_table

METRICS = {"recurrent": {"accuracy": 0.5, "num_clips": 2}}


def write_run(
    folder: Path, *, trained: dict[str, Any], asked: dict[str, Any], is_evaluated: bool = True
) -> None:
    """The files of a run whose model was trained in one way, and whose settings ask for another."""
    params = Params.model_validate({"corpus": {"manifest": "m.csv", "root": "/nowhere"}, "train": asked})
    write_settings(resolved(params, digest=lambda _: "0" * 64, clips=lambda _: "0" * 32), folder=folder)
    description = {
        "config": TrainConfig(**trained).model_dump(mode="json"),
        "contracts": [make_contract().model_dump(mode="json")],
        "inputs": {"manifest": "1" * 32},
    }
    write_json(folder / "checkpoints/recurrent/checkpoint.json", description)
    write_json(folder / "reports/evaluate.json", METRICS if is_evaluated else {})
    write_json(folder / "reports/recurrent.json", {"best_epoch": 1})
    curves = folder / "dvclive/train/recurrent/curves"
    curves.mkdir(parents=True)
    (curves / "mAP.csv").write_text("epoch,train,val\n0,,0.25\n1,,0.5\n")
    (folder / "reports/evaluate.txt").write_text("a table\n")
    if is_evaluated:
        table = answer_table(["a", "b"], truth=["x", "y"], answer=["x", "x"])
        write_predictions(folder / "reports/predictions.parquet", table)


def test_a_run_has_what_the_stages_left(tmp_path: Path) -> None:
    write_run(tmp_path, trained={"hidden_size": 5}, asked={"hidden_size": 5})
    run = load_run("mine", folder_files(tmp_path))
    assert (run.name, run.task, run.split, run.manifest) == ("mine", "classification", "test", Path("m.csv"))
    assert run.settings["train.hidden_size"] == 5
    assert run.settings["extract.dtype"] == "float16"
    assert "train.momentum" not in run.settings  # it does nothing beside adamw
    assert run.settings["code.evaluate"] == "0" * 64
    assert run.contracts == (make_contract(),)
    assert run.predictions["answer"].to_pylist() == ["x", "x"]
    assert run.predictions.schema.metadata == {b"task": b"classification"}
    assert (run.metrics, run.summary) == (METRICS, "a table\n")
    assert run.training == {"recurrent": {"best_epoch": 1}, "baseline": {}}
    assert run.curves["baseline"] == {}
    (curve,) = run.curves["recurrent"].values()
    assert isinstance(curve, Curve)
    assert curve.val == (0.25, 0.5)
    assert all(map(math.isnan, curve.train))
    assert run.limits == Limits()


def test_a_run_without_results_of_evaluation_has_no_answers(tmp_path: Path) -> None:
    write_run(tmp_path, trained={}, asked={}, is_evaluated=False)
    (tmp_path / "reports/predictions.parquet").write_text("Not evaluated.\n")
    run = load_run("member", folder_files(tmp_path))
    assert (run.predictions, run.metrics, run.summary) == (None, {}, "")


def test_a_model_of_other_settings_than_those_that_are_asked_for_is_no_run(tmp_path: Path) -> None:
    write_run(tmp_path, trained={"hidden_size": 5, "seed": 1}, asked={"hidden_size": 6, "seed": 2})
    with pytest.raises(RunError) as caught:
        load_run(WORKSPACE, folder_files(tmp_path))
    assert str(caught.value) == (
        "workspace: the model was trained with another train.hidden_size, train.seed than the settings say."
        " Run `dvc repro`."
    )


@pytest.mark.parametrize(
    ("lock", "message"),
    [
        ("", "there is no checkpoints/recurrent/checkpoint.json. It has no finished run, or one of another"),
        (
            json.dumps({"stages": {"train@recurrent": {"outs": [{"path": "checkpoints/recurrent"}]}}}),
            "checkpoints/recurrent/checkpoint.json is not in DVC's cache. Fetch it: `dvc exp pull",
        ),
    ],
)
def test_a_file_that_is_not_here_is_told_from_one_that_was_never_made(
    tmp_path: Path, lock: str, message: str
) -> None:
    if lock:
        (tmp_path / "dvc.lock").write_text(lock)
    with pytest.raises(RunError) as caught:
        load_run("theirs", folder_files(tmp_path))
    assert str(caught.value).startswith(f"theirs: {message}")
