"""Features -> checkpoints: trains the recurrent model, and the mean-pool + linear baseline beside it."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import hashlib
import json
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from dvclive.live import Live
from torch import nn
from tqdm import tqdm

from pipeline.contract import FeatureContract
from pipeline.errors import ConfigError, ManifestError, WeightsError
from pipeline.learn.checkpoint import Checkpoint, save_checkpoint
from pipeline.learn.metrics import json_numbers
from pipeline.learn.models import MODELS
from pipeline.learn.models.tail import TailFeatures
from pipeline.learn.streaming import channel_statistics, keep_resident, make_loader, with_features
from pipeline.learn.tasks import TASKS
from pipeline.learn.training import Fit, Metrics, TrainConfig, fit
from pipeline.manifest import read_manifest
from pipeline.store import FeatureView, open_view
from pipeline.system.devices import resolve_device
from pipeline.system.files import (
    file_digest,
    file_lock,
    make_folder,
    remove_folder,
    write_atomically,
    write_json,
)
from stages import console
from stages.params import CorpusConfig, load_section, training_folder

log = logging.getLogger(__name__)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m stages.train",
        description=__doc__,
        epilog="Reads corpus.manifest and train.* from params.yaml, the manifest, and features/<train.tap>/;"
        " writes checkpoints/<model>/, metrics/train.json and the curves in dvclive/train/<model>/."
        " A run that was killed goes on after its last complete epoch, if parameters, features, manifest and"
        " code are the same.",
    ).parse_args()
    config = load_section("train", TrainConfig)
    manifest_path = Path(load_section("corpus", CorpusConfig).manifest)
    with open_view(Path("features") / config.tap) as view:
        tail = _load_tail(view.contract, until=config.tail) if config.tail else None
        work = state_folder(config, view, manifest_path=manifest_path)
        clips = with_features(read_manifest(manifest_path).clips(), view)
        train_clips = [clip for clip in clips if clip.split == "train"]
        val_clips = [clip for clip in clips if clip.split == "val"]
        if not train_clips or not val_clips:
            raise ManifestError(
                f"{manifest_path} has {len(train_clips)} train and {len(val_clips)} val clips with features: "
                "training needs both."
            )
        task = TASKS[config.task].from_clips(train_clips, config)
        task.check(val_clips)  # an unknown label is an error now, not after the first epoch
        device = resolve_device(config.device)
        features = keep_resident(
            view,
            train_clips + val_clips,
            limit_bytes=config.resident_mb << 20,
            device=device,
            device_limit_bytes=None if config.resident_gpu_mb is None else config.resident_gpu_mb << 20,
            num_threads=config.num_threads,
        )
        standardisation = None
        if config.standardise:
            read = features if tail is None else TailFeatures(features, tail, device=device)
            standardisation = channel_statistics(
                read, train_clips, pooling=config.pooling, num_threads=config.num_threads
            )
        log.info("%d train and %d val clips, on %s.", len(train_clips), len(val_clips), device)

        train = make_loader(features, train_clips, config, device=device, shuffle_seed=config.seed)
        val = make_loader(features, val_clips, config, device=device)
        metrics = {}
        with file_lock(work.with_name(f"{work.name}.lock"), on_wait=_say_waiting):
            make_folder(work)
            for name in MODELS:
                model = task.build_model(
                    name,
                    config,
                    map_shape=view.map_shape,
                    standardisation=standardisation,
                    tail=tail,
                    seed=config.seed,
                )
                with Progress(name, config=config, num_batches=len(train)) as progress:
                    result = fit(
                        model,
                        task=task,
                        train=train,
                        val=val,
                        config=config,
                        device=device,
                        state_path=work / f"{name}.pt",
                        on_batch=progress.on_batch,
                        on_epoch=progress.on_epoch,
                    )
                write_curves(Path(f"dvclive/train/{name}/curves"), result.history)
                metrics[name] = _summary(result)
                checkpoint = Checkpoint(
                    network=name,
                    model=model,
                    task=task,
                    config=config,
                    contract=view.contract,
                    map_shape=view.map_shape,
                    metrics=result.history[result.best_epoch]["val"],
                    weights_source=_weights_source(view.contract),
                )
                save_checkpoint(Path("checkpoints") / name, checkpoint)
            write_json(Path("metrics/train.json"), metrics)
            remove_folder(work)


def state_folder(config: TrainConfig, view: FeatureView, *, manifest_path: Path) -> Path:
    """Where an unfinished run keeps its state: elsewhere for other parameters, features, manifest or code.

    It is outside of the outs, which DVC removes before it runs a stage.
    """
    parts = [config.model_dump(mode="json"), view.digest, file_digest(manifest_path).hex(), code_digest()]
    identity = json.dumps(parts, allow_nan=False)
    return training_folder() / hashlib.sha256(identity.encode()).hexdigest()[:32]


def code_digest() -> str:
    """Of torch's version, and of the source of the modules of `pipeline` and `stages` that are loaded."""
    root = Path(__file__).parents[1]
    loaded = {
        Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))
    }
    hasher = hashlib.sha256(torch.__version__.encode())
    for path in sorted(loaded):
        if path.is_relative_to(root / "pipeline") or path.is_relative_to(root / "stages"):
            hasher.update(f"{path.relative_to(root)}\0".encode() + file_digest(path))
    return hasher.hexdigest()


class Progress:
    """A progress bar over all epochs on stderr, and the curves for DVC."""

    def __init__(self, name: str, *, config: TrainConfig, num_batches: int) -> None:
        self._num_batches = num_batches
        self._num_epochs = 0
        self._bar = tqdm(total=config.epochs * num_batches, desc=name, unit="batch")
        self._live = Live(f"dvclive/train/{name}", save_dvc_exp=False, dvcyaml=None)

    def on_batch(self) -> None:
        self._bar.update()

    def on_epoch(self, metrics: Metrics) -> None:
        self._num_epochs += 1
        self._bar.n = self._num_epochs * self._num_batches  # also right for the epochs before a resume
        self._bar.set_postfix(
            epoch=self._num_epochs,
            train_loss=f"{metrics['train']['loss']:.3f}",
            val_loss=f"{metrics['val']['loss']:.3f}",
        )
        for split, values in metrics.items():
            for name, value in values.items():
                if math.isfinite(value):  # else dvclive would write the text "nan"
                    self._live.log_metric(f"{split}/{name}", value)
        # Not `next_step`: it also marks a file for an editor, one for all experiments of a repository, and of
        # two that run at once the first to end removes it from under the other.
        self._live.sync()  # type: ignore[no-untyped-call]
        self._live.step += 1

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._live.end()  # type: ignore[no-untyped-call]
        self._bar.close()


def write_curves(folder: Path, history: Sequence[Metrics]) -> None:
    """A CSV a metric, with columns epoch, train, val; empty where a split has no such number."""
    finite = [{split: json_numbers(values) for split, values in metrics.items()} for metrics in history]
    for name in {name: None for metrics in history[-1].values() for name in metrics}:
        rows = [
            (epoch, *(metrics[split].get(name) for split in ("train", "val")))
            for epoch, metrics in enumerate(finite)
        ]
        lines = ["epoch,train,val", *(",".join("" if v is None else str(v) for v in row) for row in rows)]
        write_atomically(folder / f"{name}.csv", ("\n".join(lines) + "\n").encode())


def _load_tail(contract: FeatureContract, *, until: str) -> nn.Module:
    """The layers between the cached tap and `until`, as the network has them whose maps are cached."""
    from pipeline.backbone.networks import tail_module  # torchvision takes seconds
    from pipeline.backbone.weights import find_weights, load_weights

    if contract.pooling != "none":
        raise ConfigError(
            f"train.tail {until!r} reads whole maps, and features/{contract.tap} have been pooled"
            f" ({contract.pooling}). Set extract.pooling to none, or train.tail to null."
        )
    path = find_weights(contract.weights_sha256, folder=Path("weights"))
    if path is None:
        raise WeightsError(
            f"train.tail needs the weights of the cached features, a {contract.arch} with sha256"
            f" {contract.weights_sha256}, and no file in weights/ is that. Run `dvc repro weights`."
        )
    return tail_module(contract.arch, after=contract.tap, until=until, state=load_weights(path).state)


def _weights_source(contract: FeatureContract) -> str:
    """Where the network of the cached features came from: what predict says when it is missing."""
    from pipeline.backbone.weights import find_weights, read_weights_info

    path = find_weights(contract.weights_sha256, folder=Path("weights"))
    return "an unknown source" if path is None else read_weights_info(path).source


def _say_waiting(holder: str) -> None:
    log.info("Waiting for another run that trains the same: %s.", holder)


def _summary(result: Fit) -> dict[str, float | None]:
    best = result.history[result.best_epoch]
    return {
        "num_epochs": len(result.history),
        "best_epoch": result.best_epoch,
        **{
            f"{split}_{name}": value
            for split, values in best.items()
            for name, value in json_numbers(values).items()
        },
    }


if __name__ == "__main__":
    console.run(main)
