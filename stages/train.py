"""Features -> checkpoints: trains the recurrent model, and the mean-pool + linear baseline beside it."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import math
from functools import partial
from pathlib import Path

from dvclive.live import Live

from pipeline.learn.run import train
from pipeline.learn.training import Metrics
from pipeline.report.tables import write_curves
from pipeline.settings.training import TrainConfig
from pipeline.system.files import write_json
from stages import console
from stages.bars import Bars
from stages.params import CorpusConfig, load_section
from stages.places import training_folder

FOLDER = Path("dvclive/train")  # of what is logged of each model


def main() -> None:
    """Train as params.yaml says; write metrics and curves."""
    argparse.ArgumentParser(
        prog="python -m stages.train",
        description=__doc__,
        epilog="Reads corpus.manifest and train.* from params.yaml, the manifest, and features/<train.tap>/;"
        " writes checkpoints/<model>/, metrics/train.json and the curves in dvclive/train/<model>/."
        " A run that was killed goes on after its last complete epoch, if parameters, features, manifest and"
        " code are the same.",
    ).parse_args()
    config = load_section("train", TrainConfig)
    lives: dict[str, Live] = {}
    with Bars("batch") as bars:
        trained = train(
            Path("features") / config.tap,
            load_section("corpus", CorpusConfig).manifest,
            config=config,
            state=training_folder(),
            on_batch=bars.show,
            on_epoch=partial(log_epoch, bars, lives),
        )
    for live in lives.values():
        live.end()  # type: ignore[no-untyped-call]
    for name, result in trained.fits.items():
        write_curves(FOLDER / name / "curves", result.history)
    write_json(Path("metrics/train.json"), trained.as_json())


def log_epoch(bars: Bars, lives: dict[str, Live], name: str, metrics: Metrics) -> None:
    """Show an epoch's losses behind the model's bar, and log all its metrics."""
    if name not in lives:
        lives[name] = Live(str(FOLDER / name), save_dvc_exp=False, dvcyaml=None)
    live = lives[name]
    losses = ", ".join(f"{split}_loss={values['loss']:.3f}" for split, values in metrics.items())
    bars.note(name, f"epoch={live.step + 1}, {losses}")
    for split, values in metrics.items():
        for metric, value in values.items():
            if math.isfinite(value):  # else dvclive would write the text "nan"
                live.log_metric(f"{split}/{metric}", value)
    # Not `next_step`: it also marks a file for an editor, one for all experiments of a repository, and of two
    # that run at once the first to end removes it from under the other.
    live.sync()  # type: ignore[no-untyped-call]
    live.step += 1


if __name__ == "__main__":
    console.run(main)
