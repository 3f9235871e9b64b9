"""Checkpoints -> test metrics: the recurrent model, the same on shuffled frames, and the baseline."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.learn.comparison import Evaluation, evaluate
from pipeline.report.plots import write_plots
from pipeline.report.tables import write_predictions
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.training import MODELS
from pipeline.store.view import INDEX_NAME
from pipeline.system.files import write_atomically, write_json
from stages import console
from stages.bars import Bars
from stages.inputs import Inputs
from stages.machine import read_machine
from stages.places import FEATURES

CHECKPOINTS = Path("checkpoints")


def main() -> None:
    """Evaluate as the settings say; write metrics, plots and the table."""
    argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description=__doc__,
        epilog="Reads settings/evaluate.yaml, the manifest, checkpoints/ and the features that they were"
        " trained on; writes metrics/evaluate.json (the test numbers of `dvc exp show`),"
        " reports/evaluate.json (all metrics with their 95 % bootstrap intervals over clips), plots/ (what"
        " DVC draws of the recurrent model's answers), reports/predictions.parquet (every answer of the three"
        " models, with its loss) and the table that it prints, reports/evaluate.txt.",
    ).parse_args()
    inputs = Inputs("evaluate", module="stages.evaluate")
    manifest, features = Path(inputs.values["manifest"]), FEATURES / inputs.values["tap"]
    checkpoints = (path for name in MODELS for path in sorted((CHECKPOINTS / name).iterdir()))
    inputs.watch(manifest, features / INDEX_NAME, *checkpoints)
    with Bars("batch") as bars:
        evaluation = evaluate(
            CHECKPOINTS,
            features,
            manifest,
            config=inputs.config("evaluate", EvaluateConfig),
            machine=read_machine(),
            on_batch=bars.show,
        )

    def confirm() -> None:
        inputs.check()
        inputs.check_experiment(evaluation.checkpoint.config)

    write_results(evaluation, confirm=confirm)
    print(evaluation.table)


def write_results(
    evaluation: Evaluation, *, folder: Path = Path(), confirm: Callable[[], None] = lambda: None
) -> None:
    """Write all that this stage writes, in the project `folder`; `confirm` is called before the metrics."""
    shutil.rmtree(folder / "plots", ignore_errors=True)  # other tasks have other plots
    write_plots(folder / "plots", evaluation)
    write_predictions(folder / "reports/predictions.parquet", evaluation.predictions)
    write_json(folder / "reports/evaluate.json", evaluation.as_json())
    write_atomically(folder / "reports/evaluate.txt", f"{evaluation.table}\n".encode())
    confirm()
    write_json(folder / "metrics/evaluate.json", evaluation.headline())


if __name__ == "__main__":
    console.run(main)
