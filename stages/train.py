"""Features -> checkpoints: trains the recurrent model, and the mean-pool + linear baseline."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import math
import shutil
from functools import partial
from pathlib import Path

from dvclive.live import Live

from pipeline.learn.member import Fit, Metrics
from pipeline.learn.run import best_metrics, train
from pipeline.report.tables import write_curves
from pipeline.settings.tasks import TASKS
from pipeline.settings.training import MODELS, ModelName, TrainConfig
from pipeline.system.files import write_json
from stages import console
from stages.bars import Bars
from stages.inputs import Inputs
from stages.machine import read_machine
from stages.places import FEATURES, training_folder, weights_path

LOGS = Path("dvclive/train")  # a folder a model


def main() -> None:
    """Train the models that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.train",
        description=__doc__,
        epilog="Reads settings/<model>.yaml, the manifest and features/<tap>/; writes checkpoints/<model>/,"
        " metrics/<model>.json (the val numbers of `dvc exp show`), reports/<model>.json (the best epoch's"
        " metrics) and the curves in dvclive/train/<model>/. A run that was killed goes on after"
        " its last complete epoch, if settings, features, manifest and code are the same.",
    )
    parser.add_argument("model", nargs="?", choices=MODELS, help="by default, one after the other")
    asked = parser.parse_args().model
    names = [name for name in MODELS if asked in (None, name)]
    inputs = [Inputs(name, module="stages.train") for name in names]  # before any code can be edited
    for name, its_inputs in zip(names, inputs, strict=True):
        train_model(name, its_inputs)


def train_model(name: ModelName, inputs: Inputs) -> None:
    """Train one model; write its checkpoint, metrics and curves."""
    config = inputs.config("train", TrainConfig)
    inputs.check_clips()
    weights = weights_path(inputs.values["weights"])
    inputs.watch(weights)  # `train` itself watches the others
    live = open_log(name)
    with Bars("batch") as bars:
        trained = train(
            FEATURES / config.tap,
            inputs.values["manifest"],
            config=config,
            machine=read_machine(),
            models=[name],
            weights=weights,
            state=training_folder(),
            confirm=inputs.check,
            on_batch=bars.show,
            on_epoch=partial(show_epoch, bars, live),
        )
    live.end()  # type: ignore[no-untyped-call]
    write_results(name, trained.fits[name], task=config.task)


def show_epoch(bars: Bars, live: Live, name: str, metrics: Metrics) -> None:
    """Show an epoch's losses behind the model's bar, and log all its metrics."""
    losses = ", ".join(f"{split}_loss={values['loss']:.3f}" for split, values in metrics.items())
    bars.note(name, f"epoch={live.step + 1}, {losses}")
    log_epoch(live, metrics)


def open_log(name: str, *, folder: Path = Path()) -> Live:
    """The log of a model's training in the project `folder`; it is empty, without curves of other metrics."""
    shutil.rmtree(folder / LOGS / name, ignore_errors=True)
    return Live(str(folder / LOGS / name), save_dvc_exp=False, dvcyaml=None)


def log_epoch(live: Live, metrics: Metrics) -> None:
    """Log all metrics of the next epoch."""
    for split, values in metrics.items():
        for metric, value in values.items():
            if math.isfinite(value):  # else dvclive would write the text "nan"
                live.log_metric(f"{split}/{metric}", value)
    # Not `next_step`: it also marks a file for an editor, one for all experiments of a repository, and of two
    # that run at once the first to end removes it from under the other.
    live.sync()  # type: ignore[no-untyped-call]
    live.step += 1


def write_trained(name: str, result: Fit, *, task: str, folder: Path) -> None:
    """Write all that this stage writes beside the checkpoint, of a model that was trained elsewhere."""
    live = open_log(name, folder=folder)
    for metrics in result.history:
        log_epoch(live, metrics)
    live.end()  # type: ignore[no-untyped-call]
    write_results(name, result, task=task, folder=folder)


def write_results(name: str, result: Fit, *, task: str, folder: Path = Path()) -> None:
    """Write a trained model's curves and metrics in the project `folder`, reports/<model>.json last."""
    values = best_metrics(result)
    shown = [f"val_{TASKS[task].headline}", "val_loss"]
    write_curves(folder / LOGS / name / "curves", result.history)
    write_json(folder / f"metrics/{name}.json", {key: values[key] for key in shown})
    write_json(folder / f"reports/{name}.json", values)


if __name__ == "__main__":
    console.run(main)
