"""Compares runs: what differs in their settings, which one is better, and the clips they differ on."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
import logging
from dataclasses import replace
from pathlib import Path

from pipeline.learn.comparison import answer_split, as_asked
from pipeline.learn.evaluation import prediction_table
from pipeline.manifest import SPLITS, clips_digest
from pipeline.report.compare_runs import compare_runs
from pipeline.report.page import Extras, write_page
from pipeline.report.run_comparison import RunComparison
from pipeline.settings.evaluation import Split
from stages import console
from stages.machine import read_machine
from stages.params import read_params
from stages.places import FEATURES
from stages.project.visible import corpus_root
from stages.run_names import NamedRun, find_runs

log = logging.getLogger(__name__)

_MAX_RUNS_OF_PAGE = 7  # a page has so many colours
_SPLIT_OF_MEMBERS = "val"  # members of a sweep must not be chosen by the test split


def main() -> None:
    """Compare the runs that the arguments name; print a table."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.compare",
        description=__doc__,
        epilog="A RUN is an experiment of DVC or a git revision, `workspace`, the folder of a checkpoint, the"
        " file of a sweep, which stands for its trained members, or checkpoints/folds or a copy of it. Runs"
        " are read from git and DVC's cache; the workspace stays as it is. They are compared by the answers"
        " that `evaluate` and `folds` have recorded, which are about the test clips. If one run has none, as"
        " a member of a sweep, or with --split, the models answer again: about the val clips, or those of"
        " --split, from features/ and the workspace's manifest.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="what to compare, two or more")
    parser.add_argument("--split", choices=SPLITS, help="the clips to compare on")
    parser.add_argument(
        "--manifest", type=Path, metavar="FILE", help="of these clips, if models answer again"
    )
    parser.add_argument(
        "--common", action="store_true", help="leave out clips that not all runs were asked the same about"
    )
    parser.add_argument(
        "--by",
        metavar="COLUMN",
        help="compare also on the clips with each value of this column, a meta_<name>",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table, with settings that differ")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page to look at")
    arguments = parser.parse_args()
    found = find_runs(arguments.runs)
    if arguments.html and any(each.run.folds for each in found):
        parser.error("--html: a page shows the clips of one split, and runs over folds have several")
    split = arguments.split
    if split is None and any(not each.run.folds and each.run.predictions is None for each in found):
        split = _SPLIT_OF_MEMBERS
    if split:
        manifest = arguments.manifest or Path(read_params().corpus.manifest)
        found = [_answered(each, split=split, manifest=manifest) for each in found]
    comparison = compare_runs([each.run for each in found], common=arguments.common, by=arguments.by or "")
    if arguments.csv:
        comparison.write_csv(arguments.csv)
    if arguments.html:
        _write_page(arguments.html, comparison)
    if arguments.json:
        print(json.dumps(comparison.as_json(), indent=1, allow_nan=False))
    else:
        print(comparison.text())


def _answered(named: NamedRun, *, split: Split, manifest: Path) -> NamedRun:
    """The run with its model's answers about the clips of a split, recorded or new."""
    run = named.run
    if (run.folds or run.predictions is not None) and run.split == split:
        return named
    checkpoint = named.load()
    trained_on = checkpoint.inputs.get("manifest")
    if trained_on and trained_on != clips_digest(manifest):
        log.warning(
            "%s was trained with another manifest than %s is now: it may have learned from its %s clips.",
            run.name,
            manifest,
            split,
        )
    config = run.evaluation.model_copy(update={"split": split})
    features = FEATURES / checkpoint.config.tap
    predictions = answer_split(checkpoint, features, manifest, config=config, machine=read_machine())
    table = prediction_table({"recurrent": predictions}, task=as_asked(checkpoint, config).task)
    new = replace(run, predictions=table, split=split, manifest=manifest, metrics={}, summary="")
    return replace(named, run=new)


def _write_page(path: Path, comparison: RunComparison) -> None:
    """Write the page, with curves and clips of the best runs."""
    runs = comparison.runs[:_MAX_RUNS_OF_PAGE]
    faults = {}
    if left := len(comparison.runs) - len(runs):
        faults["Many runs"] = (
            f"settings, curves and clips are shown of the best {len(runs)}, not of {left} more."
        )
    root = corpus_root(read_params().corpus.root)
    extras = Extras(root=root, limits=runs[0].limits, comparison=comparison, faults=faults)
    size_bytes = write_page(path, runs, title=" · ".join(run.name for run in runs), extras=extras)
    log.info("%s: %.1f MB", path, size_bytes / 1e6)


if __name__ == "__main__":
    console.run(main)
