"""Checkpoints -> test metrics: measures the recurrent model and the baseline side by side."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from pipeline.checkpoint import check_contract, load_checkpoint
from pipeline.devices import DeviceName, resolve_device
from pipeline.errors import ManifestError
from pipeline.evaluation import comparison_table, predict
from pipeline.files import write_atomically
from pipeline.manifest import read_manifest
from pipeline.models import MODELS
from pipeline.models.clip import PositiveInt
from pipeline.plots import write_class_table, write_confusion
from pipeline.store import open_view
from pipeline.streaming import Loader, with_features
from stages import console
from stages.params import CorpusConfig, load_section


class EvaluateConfig(BaseModel):
    """How the checkpoints are measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["train", "val", "test"] = "test"
    batch_size: PositiveInt = 32
    device: DeviceName = "auto"
    num_threads: PositiveInt = 2  # that read features


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m stages.evaluate",
        description=__doc__,
        epilog="Reads corpus.manifest and evaluate.* from params.yaml, the manifest, checkpoints/ and the"
        " features that they were trained on; writes metrics/evaluate.json, plots/confusion.csv and"
        " plots/classes.csv (of the recurrent model), and the table that it prints, reports/evaluate.txt.",
    ).parse_args()
    config = load_section("evaluate", EvaluateConfig)
    manifest_path = Path(load_section("corpus", CorpusConfig).manifest)
    clips = read_manifest(manifest_path).clips(split=config.split)
    device = resolve_device(config.device)
    metrics = {}
    labels = {}
    for name in MODELS:
        checkpoint = load_checkpoint(Path("checkpoints") / name)
        with open_view(Path("features") / checkpoint.config.tap) as view:
            check_contract(checkpoint.contract, view.contract, path=view.path)
            found = with_features(clips, view)
            if not found:
                raise ManifestError(f"{manifest_path} has no {config.split} clips with features.")
            loader = Loader(view, found, config.batch_size, config.num_threads)
            batches = tqdm(loader.epoch(), total=len(loader), desc=name, unit="batch")
            predictions = predict(checkpoint.model.to(device), batches, task=checkpoint.task, device=device)
        values = checkpoint.task.metrics(predictions.outputs, predictions.targets)
        metrics[name] = {**values, "num_clips": len(found)}
        labels[name] = checkpoint.config.cell.upper() if name == "recurrent" else "mean-pool + linear"
        if name == "recurrent":
            classes = checkpoint.task.classes
            write_confusion(Path("plots/confusion.csv"), predictions, classes=classes)
            write_class_table(Path("plots/classes.csv"), predictions, classes=classes)
    write_atomically(Path("metrics/evaluate.json"), (json.dumps(metrics, indent=2) + "\n").encode())
    table = comparison_table({labels[name]: values for name, values in metrics.items()})
    write_atomically(Path("reports/evaluate.txt"), (table + "\n").encode())
    print(table)


if __name__ == "__main__":
    console.run(main)
