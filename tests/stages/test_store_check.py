"""`stages.store check`: stored features beside those that this machine computes."""

import json
import shutil

import stages.store
from tests.support.in_process import run_main
from tests.support.project import Project


def check(project: Project, *arguments: str, succeeds: bool = True) -> str:
    status, stdout, stderr = run_main(stages.store.main, project.path, "check", *arguments)
    assert (status == 0) == succeeds, stdout + stderr
    return stdout + stderr


def test_features_are_what_source_and_weights_give_here(finished: Project) -> None:
    output = check(finished, "--clips", "3")
    _, values, *_, last = output.splitlines()
    assert values.split() == ["features/layer4", "3", "16", "0", "0", "0", "0", "1.000000", "100.00%"]
    made_with = json.loads((finished.path / "reports/extract.json").read_text())["made_with"]
    assert output.count(made_with["device"]) == 2
    assert "differs" not in output
    assert last == "Equal within the tolerance, 0.001."


def test_a_changed_source_and_another_revision_are_named(project: Project) -> None:
    shutil.copy(project.videos / "clip1.mp4", project.videos / "clip0.mp4")
    report = project.path / "reports/extract.json"
    values = json.loads(report.read_text())
    values["made_with"]["torch"] = "1.0"
    report.unlink()
    report.write_text(json.dumps(values))
    output = check(project, "features/layer4", "--clips", "2", succeeds=False)
    assert "The sources or time ranges of clip0 have changed since the features were made." in output
    (line,) = (line for line in output.splitlines() if line.startswith("torch "))
    assert line.split()[1] == "1.0"
    assert line.split()[-1] == "differs"
    assert "error: features/layer4 differ from what is computed here" in output
