"""All that the other stages left -> reports/index.html, a page to look at."""

import argparse
import csv
import html
import io
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, RunError
from pipeline.manifest import Clip
from pipeline.report.page import Extras, Look, write_page
from pipeline.report.runs import Run
from pipeline.system.files import make_folder, write_atomically
from pipeline.system.text_files import read_text
from stages import console
from stages.inputs import Inputs
from stages.machine import read_machine
from stages.places import FEATURES
from stages.project.parent import changes_since_parent, parent_name
from stages.project.runs import WORKSPACE, folder_files, load_run

log = logging.getLogger(__name__)

PAGE = Path("reports/index.html")
_FAILED = "<!doctype html><meta charset='utf-8'><title>No page</title><p>The page could not be made: {}</p>\n"


def main() -> None:
    """Write the page. As a stage of DVC, it never fails: that would lose an experiment's numbers."""
    argparse.ArgumentParser(
        prog="python -m stages.report",
        description=__doc__,
        epilog="Reads what extract, train and evaluate wrote, the manifest, and frames of at most 200 clips;"
        " writes reports/index.html, one file that needs no network. The page says what it can't show.",
    ).parse_args()
    try:
        size_bytes = report()
        print(f"{PAGE}: {size_bytes / 1e6:.1f} MB")
    except Exception as error:
        if "DVC_STAGE" not in os.environ:
            raise
        log.error("%s could not be made: %s", PAGE, error)
        make_folder(PAGE.parent)
        write_atomically(PAGE, _FAILED.format(html.escape(str(error))).encode("utf-8", "replace"))


def report() -> int:
    """Write the page of the workspace's run; its size in bytes. Raises RunError without results."""
    inputs = Inputs("report", module="stages.report")
    run = load_run(WORKSPACE, folder_files(Path.cwd()))
    if run.predictions is None:
        raise RunError("The workspace's model was not evaluated. Run `dvc repro evaluate`.")
    faults: dict[str, str] = {}

    def tried(what: str, read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            return read()
        except (PipelineError, OSError) as error:
            log.error("%s: %s", what, error)
            faults[what] = str(error)
            return otherwise

    attends = "attention" in (run.settings.get("train.summary"), run.settings.get("train.decoder.inject"))
    extras = Extras(
        root=inputs.root,
        limits=run.limits,
        quarantine=tried("The quarantine is not shown", _quarantine, ()),
        parent=tried("The parent experiment is not known", lambda: parent_name(Path()), ""),
        changes=tried("What was varied is not known", lambda: changes_since_parent(Path()), None),
        looks=partial(_looks, run, FEATURES / inputs.values["tap"]) if attends else None,
        faults=faults,
    )
    title = f"{run.manifest.stem if run.manifest else WORKSPACE}: {run.task.replace('_', ' ')}"
    return write_page(PAGE, [run], title=title, extras=extras)


def _quarantine() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(read_text(FEATURES / "quarantine.csv"))))


def _looks(run: Run, features: Path, clips: Sequence[Clip]) -> Mapping[str, Look]:
    from pipeline.report.attention import find_looks  # imports torch, which takes seconds

    return find_looks(
        Path("checkpoints/recurrent"), features, clips, config=run.evaluation, machine=read_machine()
    )


if __name__ == "__main__":
    console.run(main)
