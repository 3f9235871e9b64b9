"""Everything that the other stages left -> reports/index.html, a page to look at."""

import argparse
import csv
import html
import io
import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import PipelineError
from pipeline.manifest import Clip
from pipeline.report.page import Change, Extras, Look, write_page
from pipeline.report.runs import Run
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.system.files import make_folder, write_atomically
from pipeline.system.text_files import read_text
from stages import console
from stages.inputs import Inputs
from stages.machine import read_machine
from stages.params import PARAMS, params_of, read_params
from stages.places import FEATURES
from stages.project.git import run_git
from stages.project.runs import WORKSPACE, folder_files, load_run, settings_of
from stages.resolution import resolved

log = logging.getLogger(__name__)

PAGE = Path("reports/index.html")
_FAILED = "<!doctype html><meta charset='utf-8'><title>No page</title><p>The page could not be made: {}</p>\n"


def main() -> None:
    """Write the page; within an experiment, whatever happens, so that its numbers are kept."""
    argparse.ArgumentParser(
        prog="python -m stages.report",
        description=__doc__,
        epilog="Reads what extract, train and evaluate wrote, the manifest, and frames of some clips; writes"
        " reports/index.html, one file that needs no network. What can't be shown is named on the page.",
    ).parse_args()
    try:
        report()
    except Exception as error:
        if "DVC_STAGE" not in os.environ:
            raise
        log.error("The page could not be made: %s", error)
        make_folder(PAGE.parent)
        write_atomically(PAGE, _FAILED.format(html.escape(str(error))).encode("utf-8", "replace"))


def report() -> None:
    """Write the page of this workspace's run. Raises RunError when there are no results."""
    inputs = Inputs("report", module="stages.report")
    run = load_run(WORKSPACE, folder_files(Path.cwd()))
    faults: dict[str, str] = {}
    extras: dict[str, Any] = {"root": inputs.root}
    parts = {"The parent experiment": _against_parent, "The quarantine": _quarantine}
    for name, read in parts.items():
        try:
            extras |= read()
        except (PipelineError, OSError) as error:
            faults[name] = str(error)
            log.error("%s is not on the page: %s", name, error)
    if "attention" in (run.settings.get("train.summary"), run.settings.get("train.decoder.inject")):
        extras["looks"] = partial(_looks, run, features=FEATURES / inputs.values["tap"])
    num_bytes = write_page(PAGE, [run], title=_title(run), extras=Extras(**extras, faults=faults))
    print(f"{PAGE}: {num_bytes / 1e6:.1f} MB")


def _title(run: Run) -> str:
    return f"{run.manifest.stem}: {run.task.replace('_', ' ')}"


def _quarantine() -> dict[str, Any]:
    text = read_text(FEATURES / "quarantine.csv")
    return {"quarantine": list(csv.DictReader(io.StringIO(text)))}


def _against_parent() -> dict[str, Any]:
    """The commit that this workspace is on, and the settings that differ from its own."""
    parent = run_git(Path(), "log", "-1", "--format=commit %h (%s)").stdout.decode(errors="replace").strip()
    document = yaml.safe_load(run_git(Path(), "show", f"HEAD:./{PARAMS}").stdout)
    before, now = (
        settings_of(resolved(params, digest=lambda _: ""))
        for params in (params_of(document, path=Path(f"{PARAMS} of {parent}")), read_params())
    )
    return {"parent": parent, "changes": _changes(before, now)}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    return [
        Change(key, before.get(key), now.get(key))
        for key in dict.fromkeys([*now, *before])
        if before.get(key) != now.get(key)
    ]


def _looks(run: Run, clips: Sequence[Clip], *, features: Path) -> Mapping[str, Look]:
    from pipeline.report.attention import find_looks  # imports torch

    search = {key: run.settings.get(f"evaluate.{key}") for key in ("beam_size", "length_power")}
    return find_looks(
        Path("checkpoints/recurrent"),
        features,
        clips,
        config=EvaluateConfig(**search),
        machine=read_machine(),
    )


if __name__ == "__main__":
    console.run(main)
