"""Features -> checkpoints: trains the recurrent model, and the mean-pool + linear baseline beside it."""

import os

# Torch's threads sleep while they wait: spinning, two runs on the same cores take nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import hashlib
import json
import logging
import shutil
from pathlib import Path

from dvclive.live import Live
from tqdm import tqdm

from pipeline.checkpoint import Checkpoint, save_checkpoint
from pipeline.devices import resolve_device
from pipeline.errors import ManifestError
from pipeline.files import file_digest, file_lock, write_atomically
from pipeline.manifest import read_manifest
from pipeline.models import MODELS, build_model
from pipeline.store import open_view
from pipeline.streaming import Loader, channel_statistics, keep_resident, with_features
from pipeline.tasks import TASKS
from pipeline.training import Fit, Metrics, TrainConfig, fit
from stages import console
from stages.params import CorpusConfig, journal_path, load_section

log = logging.getLogger(__name__)


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m stages.train",
        description=__doc__,
        epilog="Reads corpus.manifest and train.* from params.yaml, the manifest, and features/<train.tap>/;"
        " writes checkpoints/<model>/, metrics/train.json and the curves in dvclive/train/<model>/."
        " A run that was killed goes on after its last complete epoch.",
    ).parse_args()
    config = load_section("train", TrainConfig)
    manifest_path = Path(load_section("corpus", CorpusConfig).manifest)
    with open_view(Path("features") / config.tap) as view:
        identity = json.dumps([config.model_dump(mode="json"), view.digest, file_digest(manifest_path).hex()])
        # An unfinished run keeps its state outside of the outs, which DVC removes before it runs a stage.
        work = journal_path() / "training" / hashlib.sha256(identity.encode()).hexdigest()[:32]

        clips = with_features(read_manifest(manifest_path).clips(), view)
        train_clips = [clip for clip in clips if clip.split == "train"]
        val_clips = [clip for clip in clips if clip.split == "val"]
        if not train_clips or not val_clips:
            raise ManifestError(
                f"{manifest_path} has {len(train_clips)} train and {len(val_clips)} val clips with features: "
                "training needs both."
            )
        task = TASKS[config.task].from_clips(train_clips)
        task.targets(val_clips)  # an unknown label is an error now, not after the first epoch
        device = resolve_device(config.device)
        features = keep_resident(view, train_clips + val_clips, limit_bytes=config.resident_mb << 20)
        standardisation = channel_statistics(features, train_clips) if config.standardise else None
        log.info("%d train and %d val clips, on %s.", len(train_clips), len(val_clips), device)

        batches = Loader(
            features, train_clips, config.batch_size, config.num_threads, shuffle_seed=config.seed
        )
        metrics = {}
        with file_lock(work.with_name(f"{work.name}.lock"), on_wait=_say_waiting):
            work.mkdir(exist_ok=True)
            for name in MODELS:
                model = build_model(
                    name,
                    config,
                    map_shape=view.map_shape,
                    num_outputs=task.num_outputs,
                    standardisation=standardisation,
                    seed=config.seed,
                )
                with Progress(name, config=config, num_clips=len(train_clips)) as progress:
                    result = fit(
                        model,
                        task=task,
                        train=batches,
                        val=Loader(features, val_clips, config.batch_size, config.num_threads),
                        config=config,
                        device=device,
                        state_path=work / f"{name}.pt",
                        on_batch=progress.on_batch,
                        on_epoch=progress.on_epoch,
                    )
                metrics[name] = _summary(result)
                checkpoint = Checkpoint(
                    network=name,
                    model=model,
                    task=task,
                    config=config,
                    contract=view.contract,
                    map_shape=view.map_shape,
                    metrics=result.history[result.best_epoch]["val"],
                )
                save_checkpoint(Path("checkpoints") / name, checkpoint)
            write_atomically(Path("metrics/train.json"), (json.dumps(metrics, indent=2) + "\n").encode())
            shutil.rmtree(work)


class Progress:
    """A progress bar over all epochs on stderr, and the curves for DVC."""

    def __init__(self, name: str, *, config: TrainConfig, num_clips: int) -> None:
        self._num_clips = num_clips
        self._num_epochs = 0
        self._bar = tqdm(total=config.epochs * num_clips, desc=name, unit="clip")
        self._live = Live(f"dvclive/train/{name}", save_dvc_exp=False, dvcyaml=None)

    def on_batch(self, num_clips: int) -> None:
        self._bar.update(num_clips)

    def on_epoch(self, metrics: Metrics) -> None:
        self._num_epochs += 1
        self._bar.n = self._num_epochs * self._num_clips  # also right for the epochs before a resume
        self._bar.set_postfix(
            epoch=self._num_epochs,
            train_loss=f"{metrics['train']['loss']:.3f}",
            val_loss=f"{metrics['val']['loss']:.3f}",
        )
        for split, values in metrics.items():
            for name, value in values.items():
                self._live.log_metric(f"{split}/{name}", value)
        self._live.next_step()  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._live.end()  # type: ignore[no-untyped-call]
        self._bar.close()


def _say_waiting(holder: str) -> None:
    log.info("Waiting for another run that trains the same: %s.", holder)


def _summary(result: Fit) -> dict[str, float]:
    best = result.history[result.best_epoch]
    return {
        "num_epochs": len(result.history),
        "best_epoch": result.best_epoch,
        **{f"{split}_{name}": value for split, values in best.items() for name, value in values.items()},
    }


if __name__ == "__main__":
    console.run(main)
