"""Recipes: queues every `dvc exp run` of docs/recipes.md, runs them, and prints what came out.

Run it in a clone in which `dvc repro` has run and everything is committed:

    python -m benchmarks.recipes --json benchmarks/results/recipes.json
"""

import argparse
import json
import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import dvc.api
from dvc.exceptions import DvcException
from tqdm import tqdm

PAGE = Path("docs/recipes.md")
# The first of these that an experiment has is its headline.
HEADLINES = ("exact_match", "accuracy", "rmse")


def commands(page: str) -> dict[str, list[str]]:
    """{experiment's name: the arguments after `dvc exp run`} of a page's console blocks."""
    lines = [shlex.split(line) for line in re.findall(r"^\$ dvc exp run (.*)$", page, flags=re.MULTILINE)]
    return {arguments[arguments.index("-n") + 1]: arguments for arguments in lines}


def run_dvc(*arguments: str) -> str:
    return subprocess.run(["dvc", *arguments], check=True, capture_output=True, text=True).stdout


def metrics_of(name: str) -> dict[str, Any] | None:
    """metrics/evaluate.json of an experiment, or None before it is finished."""
    try:
        # Not metrics_show, which leaves out lists: the intervals.
        metrics: dict[str, Any] = json.loads(dvc.api.read("metrics/evaluate.json", rev=name))
    except DvcException:
        return None
    return metrics


def run_queue(experiments: dict[str, list[str]], *, num_jobs: int) -> None:
    """Queue and run them; returns when all are done or failed."""
    for arguments in tqdm(experiments.values(), desc="queue", unit="experiment"):
        run_dvc("exp", "run", "--queue", *arguments)
    run_dvc("queue", "start", "--jobs", str(num_jobs))
    with tqdm(total=len(experiments), desc="run", unit="experiment") as bar:
        while "Queued" in (status := run_dvc("queue", "status")) or "Running" in status:
            bar.update(status.count("Success") + status.count("Failed") - bar.n)
            time.sleep(10)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a recipe, its headline metric for the model, the control and the baseline."""
    lines = ["| recipe | metric | model | frames shuffled | baseline |", "|---|---|---|---|---|"]
    for name, metrics in results.items():
        headline = next(metric for metric in HEADLINES if metric in metrics["recurrent"])
        low, high = metrics["recurrent"]["intervals"][headline]
        cells = [f"{metrics['recurrent'][headline]:.3f} [{low:.3f}, {high:.3f}]"]
        for other in ("shuffled", "baseline"):
            value = metrics.get(other, {}).get(headline)
            cells.append("" if value is None else f"{value:.3f}")
        lines.append(f"| {name} | {headline.replace('_', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="experiments of the page (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="experiments at a time")
    parser.add_argument("--json", type=Path, help="where the metrics are added")
    options = parser.parse_args()
    experiments = commands(PAGE.read_text())
    if unknown := set(options.names) - experiments.keys():
        parser.error(f"{PAGE} has no {', '.join(sorted(unknown))}")
    names = options.names or list(experiments)
    run_queue({name: experiments[name] for name in names if metrics_of(name) is None}, num_jobs=options.jobs)
    results = {name: metrics for name in names if (metrics := metrics_of(name))}
    print(table(results))
    if failed := [name for name in names if name not in results]:
        print(f"\nFailed: {', '.join(failed)}. See `dvc queue logs <name>`.")
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        known |= results
        recorded = {name: known[name] for name in experiments if name in known}
        options.json.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
