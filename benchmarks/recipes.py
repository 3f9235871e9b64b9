"""Recipes: runs those of recipes/ as queued experiments, and prints their metrics on the test split.

Run it in a clone in which `dvc repro` has run and everything is committed:

    python -m benchmarks.recipes --record

With --check it trains the first epoch of each, and runs only the recipes whose loss is no longer the recorded
one. It extracts features that are missing; `dvc repro` brings back those that were there.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in stages.train

import argparse
import contextlib
import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import dvc.api
import yaml
from dvc.exceptions import DvcException

from pipeline.learn.member import Metrics
from pipeline.learn.run import train
from pipeline.settings.tasks import TASKS
from pipeline.settings.training import TrainConfig
from stages.bars import ProgressBar
from stages.digits import FOLDERS
from stages.overrides import flags
from stages.params import PARAMS, read_params
from stages.recipe import DEFAULTS, RECIPES, Result, read_recipe, recipe_names, recipe_params
from stages.yaml_files import read_mapping


def run_dvc(*arguments: str) -> str:
    return subprocess.run(["dvc", *arguments], check=True, capture_output=True, text=True).stdout


def result_of(name: str) -> Result | None:
    """The result of the experiment with this name; None before it is finished."""
    try:
        metrics = json.loads(dvc.api.read("reports/evaluate.json", rev=name))
        curve = dvc.api.read("dvclive/train/recurrent/curves/loss.csv", rev=name)
    except DvcException:
        return None
    task = read_recipe(name).params.get("train", {}).get("task", TrainConfig().task)
    headline = TASKS[task].headline
    low, high = metrics["recurrent"]["intervals"][headline]
    return Result(
        metric=headline,
        model=round(metrics["recurrent"][headline], 6),
        interval=(round(low, 6), round(high, 6)),
        shuffled=round(metrics["shuffled"][headline], 6),
        baseline=round(metrics["baseline"][headline], 6),
        first_epoch_loss=float(next(csv.DictReader(io.StringIO(curve)))["val"]),
    )


def record(name: str, result: Result) -> None:
    """Replace the result in the recipe's file, whose last key it is."""
    path = RECIPES / f"{name}.yaml"
    kept = path.read_text().partition("\nresult:")[0].rstrip("\n")
    text = yaml.safe_dump(
        {"result": result.model_dump(mode="json")}, sort_keys=False, default_flow_style=None
    )
    path.write_text(f"{kept}\n{text}")


def render_corpora(names: Iterable[str]) -> None:
    """Render what is missing of the embedded corpus for these recipes."""
    corpora = [read_recipe(name).params.get("corpus", {}) for name in names]
    manifests = {corpus["manifest"] for corpus in corpora if Path(corpus.get("root", "")) in FOLDERS.values()}
    if manifests:
        subprocess.run([sys.executable, "-m", "stages.digits", *sorted(manifests)], check=True)


def run_queue(names: Sequence[str], *, num_jobs: int) -> None:
    """Queue and run these recipes; returns when all are done or failed."""
    params = read_mapping(PARAMS)
    for name in ProgressBar(names, desc="queue", unit="experiment"):
        arguments = " ".join(flags(params, recipe_params(name, params))).split()
        run_dvc("exp", "run", "--queue", "-n", name, *arguments)
    # Not `run_dvc`: its pipe stays open as long as the workers run.
    subprocess.run(["dvc", "queue", "start", "--jobs", str(num_jobs)], check=True, stdout=subprocess.DEVNULL)
    with ProgressBar(total=len(names), desc="run", unit="experiment") as bar:
        while "Queued" in (status := queue_status()) or "Running" in status:
            bar.update(status.count("Success") + status.count("Failed") - bar.n)
            time.sleep(10)


def queue_status() -> str:
    """What `dvc queue status` prints. It fails when a task ends while it reads, and is then asked again."""
    for _ in range(5):
        with contextlib.suppress(subprocess.CalledProcessError):
            return run_dvc("queue", "status")
        time.sleep(5)
    return run_dvc("queue", "status")


class FirstEpochEnds(Exception):
    """Ends a training; has the metrics of its first epoch."""


def first_epoch_loss(name: str) -> float:
    """The loss of the recipe's model on the val split after its first epoch; params.yaml stays as it is."""

    def end(_: str, metrics: Metrics) -> None:
        raise FirstEpochEnds(metrics)

    before = PARAMS.read_text()
    try:
        PARAMS.write_text(yaml.safe_dump(recipe_params(name, read_mapping(PARAMS))))
        run_dvc("repro", "extract")
        params = read_params()
    finally:
        PARAMS.write_text(before)
    with TemporaryDirectory() as folder:
        try:
            features = Path("features") / params.train.tap
            train(
                features,
                params.corpus.manifest,
                config=params.train,
                models=["recurrent"],
                checkpoints=folder,
                state=folder,
                on_epoch=end,
            )
        except FirstEpochEnds as ended:
            metrics: Metrics = ended.args[0]
    return metrics["val"]["loss"]


def changed(names: Iterable[str]) -> list[str]:
    """The recipes whose first loss is no longer the recorded one. Equal machines give equal bits."""
    found = []
    for name in names:
        result = read_recipe(name).result
        recorded = result and result.first_epoch_loss
        loss = result and first_epoch_loss(name)
        print(f"{name}: {loss!r}, recorded {recorded!r}", flush=True)
        if not result or loss != recorded:
            found.append(name)
    print(f"Changed or unknown: {', '.join(found) or 'none'}")
    return found


def table(results: Mapping[str, Result]) -> str:
    """Markdown for docs/recipes.md: a row a recipe, its headline metric of model, control and baseline."""
    lines = ["| recipe | metric | model | frames shuffled | baseline |", "|---|---|---|---|---|"]
    for name, result in results.items():
        low, high = result.interval
        cells = [
            f"{result.model:.3f} [{low:.3f}, {high:.3f}]",
            f"{result.shuffled:.3f}",
            f"{result.baseline:.3f}",
        ]
        link = f"[{name}](../{RECIPES}/{name}.yaml)"
        lines.append(f"| {link} | {result.metric.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="recipes (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    parser.add_argument("--record", action="store_true", help="write the results into the recipes' files")
    parser.add_argument("--check", action="store_true", help="run only those whose first loss has changed")
    options = parser.parse_args()
    names = options.names or [name for name in recipe_names() if name != DEFAULTS]
    if unknown := set(names) - set(recipe_names()):
        parser.error(f"{RECIPES} has no {', '.join(sorted(unknown))}")
    render_corpora(names)
    if options.check:
        names = changed(names)
        for name in filter(result_of, names):
            run_dvc("exp", "remove", name)  # its result is stale
    if missing := [name for name in names if result_of(name) is None]:
        run_queue(missing, num_jobs=options.jobs)
    results = {name: result for name in names if (result := result_of(name))}
    print(table(results))
    if failed := [name for name in names if name not in results]:
        print(f"\nFailed: {', '.join(failed)}. See `dvc queue logs <name>`.")
    if options.record:
        for name, result in results.items():
            record(name, result)


if __name__ == "__main__":
    main()
