"""Parameters, code and manifest that are edited while a stage runs, under the real DVC."""

import re
import subprocess
import time
from typing import Any

import pytest
import yaml

from pipeline.extraction import Extracted
from pipeline.store import open_view
from pipeline.system.files import write_atomically
from stages import extraction
from tests.stages.test_dvc import ran
from tests.support.project import NAMES, Project

EPOCHS = 40  # take a second


@pytest.fixture
def long(project: Project) -> Project:
    """A project whose next run trains for some seconds."""
    project.set({"train.epochs": EPOCHS, "train.patience": None, "train.hidden_size": 8})
    project.commit()
    return project


def start(project: Project, *command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["dvc", *(command or ["repro"])],
        cwd=project.path,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_it_trains(project: Project) -> None:
    deadline = time.monotonic() + 120
    while not list((project.path / ".framecache/training").rglob("*.pt")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: "subprocess.Popen[str]", *, status: int) -> str:
    output, _ = process.communicate(timeout=240)
    assert (process.returncode == 0) == (status == 0), output
    return output


def locked_settings(project: Project, stage: str) -> str:
    """The md5 of the settings that dvc.lock says a stage has used."""
    lock = yaml.safe_load((project.path / "dvc.lock").read_text())["stages"]
    (md5,) = (dep["md5"] for dep in lock[stage]["deps"] if dep["path"].startswith("settings/"))
    return str(md5)


def test_edited_parameters_are_those_of_the_next_run(long: Project) -> None:
    process = start(long, "repro", "train@recurrent")
    wait_until_it_trains(long)
    long.set({"train.hidden_size": 9, "train.epochs": 2})
    end(process, status=0)
    checkpoint = yaml.safe_load((long.path / "checkpoints/recurrent/checkpoint.json").read_text())
    assert checkpoint["config"]["hidden_size"] == 8
    used = locked_settings(long, "train@recurrent")
    assert ran(long.dvc("repro", "train@recurrent")) == ["settings", "train@recurrent"]
    assert locked_settings(long, "train@recurrent") != used


def test_an_experiment_whose_parameters_are_edited_is_not_shown_with_the_new_ones(
    long: Project,
) -> None:
    process = start(long, "exp", "run", "--name", "edited", "--set-param", "train.hidden_size=7")
    wait_until_it_trains(long)
    long.set({"train.hidden_size": 9})
    output = end(process, status=1)
    assert "params.yaml was edited while this experiment ran" in output
    assert "settings that it did not use (recurrent)" in output
    assert "edited" not in long.dvc("exp", "list")
    long.set({"train.hidden_size": 7})
    assert "Epoch" not in long.dvc("exp", "run", "--name", "edited")
    assert "edited" in long.dvc("exp", "list")


def test_an_edited_manifest_stops_the_run_at_its_end_and_what_it_trained_is_kept(long: Project) -> None:
    before = locked_settings(long, "train@recurrent")
    process = start(long, "repro", "train@recurrent")
    wait_until_it_trains(long)
    manifest = long.path / "manifests/mine.csv"
    data = manifest.read_bytes()
    long.write_manifest([*NAMES[:6], "clip7", "clip6"])
    output = end(process, status=1)
    assert "manifests/mine.csv changed while the model trained, and no checkpoint is written." in output
    assert "Traceback" not in output
    assert locked_settings(long, "train@recurrent") == before
    manifest.write_bytes(data)
    assert re.search(rf"resumes after epoch {EPOCHS}\b", long.dvc("repro", "train@recurrent"))


def test_code_that_is_edited_before_a_stage_starts_stops_it(project: Project) -> None:
    project.add_video("clip3", first_index=999)
    code = project.path / "pipeline/learn/training.py"
    text = code.read_text()
    process = start(project)
    deadline = time.monotonic() + 120
    while (
        not (project.path / "settings/recurrent.yaml").exists()
        or (project.path / "reports/extract.json").exists()
    ):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    code.write_text(f"{text}\nEDITED = True\n")
    output = end(process, status=1)
    assert "The code of stages.train was edited after settings/recurrent.yaml was written." in output
    code.write_text(text)
    assert ran(project.dvc("repro", "train@baseline"))[-1] == "train@baseline"


def test_a_source_that_is_replaced_before_extract_reads_it_stops_it(project: Project) -> None:
    project.add_video("clip3", first_index=999)
    video = (project.videos / "clip3.mp4").read_bytes()
    process = start(project)
    deadline = time.monotonic() + 120
    while (project.path / "features").exists():  # DVC removes it before the stage
        assert time.monotonic() < deadline
        time.sleep(0.01)
    project.add_video("clip3", num_frames=9)
    output = end(process, status=1)
    assert "clip3.mp4 changed after sources was written. The features are kept: run again." in output
    (project.videos / "clip3.mp4").write_bytes(video)
    project.dvc("repro", "extract")
    with open_view(project.path / "features/layer4") as view:
        assert view.num_frames("clip3") == 5


@pytest.mark.parametrize("name", ["sources", "weights/resnet18.safetensors", "manifests/mine.csv"])
def test_what_extract_has_read_may_not_be_replaced_before_it_ends(
    project: Project, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    real = extraction.run_job

    def run_job(*arguments: Any, **options: Any) -> Extracted:
        extracted = real(*arguments, **options)
        path = project.path / name
        write_atomically(path, path.read_bytes() + b"\n")
        return extracted

    monkeypatch.setattr(extraction, "run_job", run_job)
    assert f"{name} changed while this stage ran" in project.extract_here(check=False)


def test_comments_and_a_machines_settings_run_nothing_and_an_edit_runs_what_imports_it(
    project: Project,
) -> None:
    project.set_machine(device="cpu", num_readers=1, resident_mb=0, batch_size=3)
    code = project.path / "pipeline/learn/training.py"
    text = code.read_text()
    code.write_text(f"# A comment.\n{text}\n\n# Another.\n")
    upkeep = project.path / "pipeline/store/upkeep/gc.py"
    upkeep.write_text(f"{upkeep.read_text()}\nEDITED = True\n")
    engine = project.path / "pipeline/extraction/engine.py"
    engine.write_text(f"{engine.read_text()}\nEDITED = True\n")
    assert ran(project.dvc("repro")) == ["settings"]
    report = project.path / "pipeline/report/plots.py"
    report.write_text(f"{report.read_text()}\nEDITED = True\n")
    assert ran(project.dvc("repro")) == ["settings", "evaluate"]
