"""A training run: features and a manifest in, a checkpoint a model out. A run that was killed goes on."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.backbone.networks import tail_module
from pipeline.backbone.weights import UNKNOWN_SOURCE, find_source, find_weights
from pipeline.errors import ConfigError, InputChangedError, ManifestError, MissingNetworkError
from pipeline.learn.checkpoint import Checkpoint, save_checkpoint
from pipeline.learn.metrics import json_numbers
from pipeline.learn.models.tail import TailFeatures
from pipeline.learn.streaming import channel_statistics, keep_resident, make_loader, with_features
from pipeline.learn.tasks import TASK_CLASSES
from pipeline.learn.training import Fit, Metrics, fit
from pipeline.manifest import Clip, read_manifest
from pipeline.settings.machine import Machine
from pipeline.settings.training import MODELS, ModelName, TrainConfig
from pipeline.store import FeatureView, open_view
from pipeline.system.code import code_digest
from pipeline.system.devices import resolve_device
from pipeline.system.files import file_digest, file_lock, make_folder

log = logging.getLogger(__name__)


OnBatch = Callable[[str, int, int], None]  # of a model's name, the number of batches done, and of all
OnEpoch = Callable[[str, Metrics], None]  # of a model's name, and its metrics of the epoch


@dataclass(frozen=True)
class Trained:
    """What a training run gave."""

    checkpoints: Path  # a folder a model, by its name
    fits: dict[str, Fit]  # by the same name: each epoch's metrics, and which epoch was the best

    def as_json(self) -> dict[str, dict[str, float | None]]:
        """For each model the metrics of its best epoch; None for what is not defined."""
        return {name: best_metrics(result) for name, result in self.fits.items()}


def train(
    features: str | Path,
    manifest: str | Path,
    *,
    config: TrainConfig = TrainConfig(),
    machine: Machine = Machine(),
    models: Sequence[ModelName] = MODELS,
    checkpoints: str | Path = "checkpoints",
    weights: str | Path = "weights",
    state: str | Path = ".framecache/training",
    confirm: Callable[[], None] = lambda: None,
    on_batch: OnBatch = lambda *_: None,
    on_epoch: OnEpoch = lambda *_: None,
) -> Trained:
    """Train the model that `config` describes, and beside it the baseline that it has to beat.

    After each epoch the state of a model's training goes to `state`. A training that was killed goes on after
    its last complete epoch, to the same numbers, when it is called again with the same features, manifest and
    settings of this model, and the code is the same.

    Args:
        features: the features of one tap, such as features/layer4.
        manifest: a CSV or Parquet manifest; its train split is trained on, its val split chooses the epoch.
        config: how to train. Its `tap`, if it is set, must be that of the features.
        machine: device, threads and memory.
        models: which of the two to train.
        checkpoints: the folder to write, with one folder a model.
        weights: with a tail, the weights file of the network that made the features, or a folder that has it.
        state: the folder for the state of unfinished trainings.
        confirm: called after a model's last epoch, before its checkpoint is written. If it raises an error,
            the state is kept, and the next call goes on from there.
        on_batch: called after each batch with the model's name, the number of batches done and of all.
        on_epoch: called after each epoch with the model's name and the epoch's metrics; on a resumed run also
            for the epochs before.

    Raises:
        MissingFeaturesError: when there are no features.
        ManifestError: when the manifest is wrong, or its clips lack what the task needs.
        ConfigError: for a config that does not fit the features, the task or the machine.
        WeightsError: when a tail's weights are missing, or are others.
        NonFiniteError: for features or a loss that are infinite or NaN.
        InputChangedError: when features or manifest changed meanwhile. The state is kept.
    """
    _loaded_code()
    inputs = input_digests(features, manifest)
    with open_view(Path(features)) as view, _intra_op_threads(config.intra_op_threads):
        config = _of_tap(config, view)
        tail, source = _load_tail(config, view, weights=Path(weights))
        splits = _split(Path(manifest), view)
        task = TASK_CLASSES[config.task].from_clips(splits["train"], config)
        task.check(splits["val"])  # an unknown label is an error now, not after the first epoch
        device, num_threads = resolve_device(machine.device), machine.num_readers
        resident = keep_resident(
            view,
            splits["train"] + splits["val"],
            limit_bytes=machine.resident_mb << 20,
            device=device,
            device_limit_bytes=None if machine.resident_gpu_mb is None else machine.resident_gpu_mb << 20,
            num_threads=num_threads,
        )
        standardisation = None
        if config.standardise:
            read = resident if tail is None else TailFeatures(resident, tail, device=device)
            standardisation = channel_statistics(
                read, splits["train"], pooling=config.pooling, num_threads=num_threads
            )
        log.info("%d train and %d val clips, on %s.", *map(len, splits.values()), device)
        train_loader, val_loader = (
            make_loader(
                resident, clips, config, device=device, num_threads=num_threads, shuffle_seed=shuffle_seed
            )
            for clips, shuffle_seed in ((splits["train"], config.seed), (splits["val"], None))
        )
        fits: dict[str, Fit] = {}
        for name in models:
            state_path = Path(state) / f"{name}-{run_digest(config, name, inputs)}.pt"
            make_folder(state_path.parent)
            with file_lock(state_path.with_suffix(".lock"), on_wait=_say_waiting):
                model = task.build_model(
                    name,
                    config,
                    map_shape=view.map_shape,
                    standardisation=standardisation,
                    tail=tail,
                    seed=config.seed,
                )
                counter = _Counter(name, len(train_loader), config.epochs, on_batch, on_epoch)
                fits[name] = fit(
                    model,
                    task=task,
                    train=train_loader,
                    val=val_loader,
                    config=config,
                    device=device,
                    state_path=state_path,
                    on_batch=counter.count_batch,
                    on_epoch=counter.count_epoch,
                )
                confirm()
                _refuse_changes(inputs, input_digests(features, manifest))
                checkpoint = Checkpoint(
                    network=name,
                    model=model,
                    task=task,
                    config=config,
                    contract=view.contract,
                    map_shape=view.map_shape,
                    metrics=fits[name].history[fits[name].best_epoch]["val"],
                    weights_source=source,
                    inputs=dict(zip(("features", "manifest"), inputs.values(), strict=True)),
                )
                save_checkpoint(Path(checkpoints) / name, checkpoint)
                state_path.unlink()
    return Trained(Path(checkpoints), fits)


def run_digest(config: TrainConfig, model: ModelName, inputs: Mapping[str, str]) -> str:
    """The name of a training's state: another one for another model, setting, input or code.

    `inputs` are those of `input_digests`; settings that do nothing for the model have no influence.
    """
    code = [torch.__version__, _loaded_code()]
    parts = [model, config.live(model), *inputs.values(), code]
    return hashlib.sha256(json.dumps(parts, allow_nan=False).encode()).hexdigest()[:32]


@functools.cache
def _loaded_code() -> str:
    """The digest of the code that this process runs, whatever is edited after the first call."""
    return code_digest(__name__)


def input_digests(features: str | Path, manifest: str | Path) -> dict[str, str]:
    """The digests of features and manifest, each by its path."""
    with open_view(Path(features)) as view:
        return {str(features): view.digest, str(manifest): file_digest(manifest).hex()}


def _refuse_changes(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise InputChangedError if digests differ."""
    if changed := [path for path, digest in before.items() if after[path] != digest]:
        raise InputChangedError(
            f"{' and '.join(changed)} changed while the model trained, and no checkpoint is written. The"
            " training is kept: undo the change to get it, or run again to train on what is there now."
        )


@contextmanager
def _intra_op_threads(number: int | None) -> Iterator[None]:
    """So many threads of torch's operations on a CPU, and as many as before afterwards; None: no change."""
    if number is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Counter:
    """Counts the batches of a model's training, those before a resume included, for the caller's progress."""

    def __init__(
        self, name: str, epoch_batches: int, epochs: int, on_batch: OnBatch, on_epoch: OnEpoch
    ) -> None:
        self._name = name
        self._epoch_batches, self._epochs = epoch_batches, epochs
        self._on_batch, self._on_epoch = on_batch, on_epoch
        self._batches_done = self._epochs_done = 0

    def count_batch(self) -> None:
        self._batches_done += 1
        self._on_batch(self._name, self._batches_done, self._epochs * self._epoch_batches)

    def count_epoch(self, metrics: Metrics) -> None:
        self._epochs_done += 1
        self._batches_done = self._epochs_done * self._epoch_batches
        self._on_epoch(self._name, metrics)


def _of_tap(config: TrainConfig, view: FeatureView) -> TrainConfig:
    """The config with the features' tap. Raises ConfigError when it names another."""
    tap = view.contract.tap
    if "tap" in config.model_fields_set and config.tap != tap:
        raise ConfigError(f"The config's tap is {config.tap!r}, but {view.path} has features of {tap!r}.")
    return config.model_copy(update={"tap": tap})


def _split(manifest: Path, view: FeatureView) -> dict[str, list[Clip]]:
    """The train and the val clips that have features. Raises ManifestError when there are none of either."""
    clips = with_features(read_manifest(manifest).clips(), view)
    splits = {name: [clip for clip in clips if clip.split == name] for name in ("train", "val")}
    if not all(splits.values()):
        raise ManifestError(
            f"{manifest} has {len(splits['train'])} train and {len(splits['val'])} val clips with features:"
            " training needs both."
        )
    return splits


def _load_tail(config: TrainConfig, view: FeatureView, *, weights: Path) -> tuple[nn.Module | None, str]:
    """The layers from the cached tap to `config.tail`, if it is set, and the source of their network."""
    contract = view.contract
    if config.tail is None:
        try:
            return None, find_source(contract, place=weights)
        except MissingNetworkError:
            return None, UNKNOWN_SOURCE
    if contract.pooling != "none":
        raise ConfigError(
            f"The tail {config.tail!r} reads whole maps, but those in {view.path} are pooled"
            f" ({contract.pooling}). Extract with pooling 'none', or train without a tail."
        )
    network = find_weights(contract, place=weights)
    tail = tail_module(contract.arch, after=contract.tap, until=config.tail, state=network.state)
    return tail, network.source


def _say_waiting(holder: str) -> None:
    log.info("Waiting for another run that trains the same: %s.", holder)


def best_metrics(result: Fit) -> dict[str, float | None]:
    """The metrics of a model's best epoch, such as val_loss; None for what is not defined."""
    best = {
        f"{split}_{name}": value
        for split, values in result.history[result.best_epoch].items()
        for name, value in json_numbers(values).items()
    }
    return {"num_epochs": len(result.history), "best_epoch": result.best_epoch, **best}
