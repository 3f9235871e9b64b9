"""What the trainings of a run share: features, and for equal settings tasks, statistics and loaders."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from pipeline.backbone.tails import contract_tail
from pipeline.backbone.weights import UNKNOWN_SOURCE, find_source, find_weights
from pipeline.contract import CENTER, FrameView
from pipeline.errors import ConfigError, ManifestError, MissingNetworkError
from pipeline.learn.member import Member
from pipeline.learn.models.tail import TailFeatures
from pipeline.learn.streaming import (
    Loader,
    Standardisation,
    channel_statistics,
    keep_all_resident,
    make_loader,
    with_features,
)
from pipeline.learn.tasks import TASK_CLASSES, Task
from pipeline.manifest import Clip, read_manifest
from pipeline.settings.machine import Machine
from pipeline.settings.tasks import TaskConfig
from pipeline.settings.training import LoaderConfig, ModelName, TrainConfig
from pipeline.store import FeatureView
from pipeline.system.devices import resolve_device
from pipeline.system.memory import available_bytes

log = logging.getLogger(__name__)

_Made = TypeVar("_Made")


class TailSource(NamedTuple):
    """The layers that are trained behind the cached tap, and where their network comes from."""

    layers: nn.Module | None  # None: no tail
    source: str  # for people


class Shared:
    """What trainings on the same features share. Each thing is made when it is first needed, and once."""

    def __init__(
        self, views: Mapping[FrameView, FeatureView], manifest: Path, *, machine: Machine, weights: Path
    ) -> None:
        """`views` has the centre view, and all others that are trained on."""
        self._view = view = views[CENTER]
        self.contract, self.map_shape = view.contract, view.map_shape
        self._weights = weights
        self._splits = _split(manifest, view)
        self._num_threads = machine.num_readers
        self.device = resolve_device(machine.device)
        train = self._splits["train"]
        clips = {each: [clip for clip in train if clip.clip_id in views[each]] for each in views}
        clips[CENTER] = train + self._splits["val"]
        kept = keep_all_resident(
            [(views[each], clips[each]) for each in views],
            limit_bytes=machine.resident_mb << 20,
            device=self.device,
            device_limit_bytes=None if machine.resident_gpu_mb is None else machine.resident_gpu_mb << 20,
            num_threads=self._num_threads,
        )
        self._features = dict(zip(views, kept, strict=True))
        self._made: dict[tuple[object, ...], Any] = {}
        log.info("%d train and %d val clips, on %s.", *map(len, self._splits.values()), self.device)

    def member(self, config: TrainConfig, model: ModelName, *, state_path: Path) -> Member:
        """A model before its first epoch, or after the last one that `state_path` has."""
        task = self._task(config)
        net = task.build_model(
            model,
            config,
            map_shape=self._view.map_shape,
            standardisation=self._standardisation(config) if config.standardise else None,
            tail=self.tail(config).layers,
            seed=config.seed,
        )
        return Member(
            net,
            task=task,
            train=self._loader(config, "train"),
            val=self._loader(config, "val"),
            config=config,
            device=self.device,
            state_path=state_path,
        )

    def tail(self, config: TrainConfig) -> TailSource:
        """The layers from the cached tap to `config.tail`, if it is set, and the source of their network."""
        return self._once(
            ("tail", config.tail), lambda: _load_tail(config, self._view, weights=self._weights)
        )

    def free_bytes(self) -> int:
        """The memory that is left for models."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else available_bytes()

    def _task(self, config: TrainConfig) -> Task:
        def make() -> Task:
            task = TASK_CLASSES[config.task].from_clips(self._splits["train"], config)
            task.check(self._splits["val"])  # an unknown label is an error now, not after the first epoch
            return task

        return self._once(("task", config.task, *_values(config, TaskConfig)), make)

    def _standardisation(self, config: TrainConfig) -> Standardisation:
        def make() -> Standardisation:
            tail = self.tail(config).layers
            # Of the centre view alone: views change no standardisation.
            center = self._features[CENTER]
            features = TailFeatures(center, tail, device=self.device) if tail else center
            return channel_statistics(
                features, self._splits["train"], pooling=config.pooling, num_threads=self._num_threads
            )

        return self._once(("standardisation", config.tail, config.pooling), make)

    def _loader(self, config: TrainConfig, split: str) -> Loader:
        seed = config.seed if split == "train" else None
        if split != "train":  # the centre alone is validated
            config = config.model_copy(update={"views": (CENTER,)})
        return self._once(
            ("loader", split, seed, config.balanced_sampling and config.task, *_values(config, LoaderConfig)),
            lambda: make_loader(
                self._features[CENTER],
                self._splits[split],
                config,
                views=[self._features[view] for view in config.views],
                device=self.device,
                num_threads=self._num_threads,
                shuffle_seed=seed,
                labels=self._task(config).labels,
            ),
        )

    def _once(self, key: tuple[object, ...], make: Callable[[], _Made]) -> _Made:
        if key not in self._made:
            self._made[key] = make()
        made: _Made = self._made[key]
        return made


def _values(config: TrainConfig, kind: type[TaskConfig | LoaderConfig]) -> list[object]:
    """The values of the settings that are of this kind."""
    return [getattr(config, name) for name in kind.model_fields]


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


def _load_tail(config: TrainConfig, view: FeatureView, *, weights: Path) -> TailSource:
    contract = view.contract
    if config.tail is None:
        try:
            return TailSource(None, find_source(contract, place=weights))
        except MissingNetworkError:
            return TailSource(None, UNKNOWN_SOURCE)
    if contract.pooling != "none":
        raise ConfigError(
            f"The tail {config.tail!r} reads whole maps, but those in {view.path} are pooled"
            f" ({contract.pooling}). Extract with pooling 'none', or train without a tail."
        )
    network = find_weights(contract, place=weights)
    layers = contract_tail(contract, until=config.tail, state=network.state)
    return TailSource(layers, network.source)
