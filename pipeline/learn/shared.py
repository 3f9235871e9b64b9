"""What the trainings of a run share: features, and for equal settings tasks, statistics and loaders."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
    Features,
    Loader,
    Standardisation,
    channel_statistics,
    keep_all_resident,
    make_loader,
    streams_of,
    with_features,
)
from pipeline.learn.tasks import TASK_CLASSES, Task
from pipeline.manifest import Clip, read_manifest
from pipeline.settings.machine import Machine
from pipeline.settings.tasks import TaskConfig
from pipeline.settings.training import LoaderConfig, MemberConfig, TrainConfig
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
        self,
        views: Mapping[FrameView, Features],
        manifests: Sequence[Path],
        *,
        machine: Machine,
        weights: Path,
    ) -> None:
        """`views` has the centre view, and all others that are trained on."""
        self._view = view = views[CENTER]
        self.streams = streams_of(view)
        self.map_shapes = [stream.map_shape for stream in self.streams]
        self._weights = weights
        self._splits = {path: _split(path, view) for path in manifests}
        self._num_threads = machine.num_readers
        self.device = resolve_device(machine.device)
        train, val = (self._clips(split) for split in ("train", "val"))
        clips = {each: [clip for clip in train if clip.clip_id in views[each]] for each in views}
        clips[CENTER] = list({clip.clip_id: clip for clip in (*train, *val)}.values())
        kept = keep_all_resident(
            [(views[each], clips[each]) for each in views],
            limit_bytes=machine.resident_mb << 20,
            device=self.device,
            device_limit_bytes=None if machine.resident_gpu_mb is None else machine.resident_gpu_mb << 20,
            num_threads=self._num_threads,
        )
        self._features = dict(zip(views, kept, strict=True))
        self._made: dict[tuple[object, ...], Any] = {}
        for splits in self._splits.values():
            log.info("%d train and %d val clips, on %s.", *map(len, splits.values()), self.device)

    def member(self, asked: MemberConfig, *, state_path: Path) -> Member:
        """A model before its first epoch, or after the last one that `state_path` has."""
        config, manifest = asked.config, asked.manifest
        task = self._task(config, manifest)
        net = task.build_model(
            asked.model,
            config,
            map_shapes=self.map_shapes,
            standardisations=self._standardisations(config, manifest) if config.standardise else None,
            tail=self.tail(config).layers,
            seed=config.seed,
        )
        return Member(
            net,
            task=task,
            train=self._loader(config, manifest, "train"),
            val=self._loader(config, manifest, "val"),
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

    def _clips(self, split: str) -> list[Clip]:
        """The clips that have this split in some manifest, each once."""
        found = (clip for splits in self._splits.values() for clip in splits[split])
        return list({clip.clip_id: clip for clip in found}.values())

    def _task(self, config: TrainConfig, manifest: Path) -> Task:
        def make() -> Task:
            task = TASK_CLASSES[config.task].from_clips(self._splits[manifest]["train"], config)
            # An unknown label is an error now, not after the first epoch.
            task.check(self._splits[manifest]["val"])
            return task

        return self._once(("task", manifest, config.task, *_values(config, TaskConfig)), make)

    def _standardisations(self, config: TrainConfig, manifest: Path) -> list[Standardisation]:
        """Of each stream's maps, of the centre view alone: views change no standardisation."""
        tail = self.tail(config).layers
        center = self._features[CENTER]
        features = TailFeatures(center, tail, device=self.device) if tail else center
        streams = self.streams if config.streams else [features]  # of several, those in the store are read
        poolings = [config.pooling, *(stream.pooling for stream in config.streams)]
        return [
            self._once(
                ("standardisation", manifest, config.tail, number, pooling),
                partial(
                    channel_statistics,
                    stream,
                    self._splits[manifest]["train"],
                    pooling=pooling,
                    num_threads=self._num_threads,
                ),
            )
            for number, (stream, pooling) in enumerate(zip(streams, poolings, strict=True))
        ]

    def _loader(self, config: TrainConfig, manifest: Path, split: str) -> Loader:
        seed = config.seed if split == "train" else None
        if split != "train":  # the centre alone is validated
            config = config.model_copy(update={"views": (CENTER,)})
        return self._once(
            (
                "loader",
                manifest,
                split,
                seed,
                config.balanced_sampling and config.task,
                *_values(config, LoaderConfig),
            ),
            lambda: make_loader(
                self._features[CENTER],
                self._splits[manifest][split],
                config,
                views=[self._features[view] for view in config.views],
                device=self.device,
                num_threads=self._num_threads,
                shuffle_seed=seed,
                labels=self._task(config, manifest).labels,
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


def _split(manifest: Path, view: Features) -> dict[str, list[Clip]]:
    """The train and the val clips that have features. Raises ManifestError when there are none of either."""
    clips = with_features(read_manifest(manifest).clips(), view)
    splits = {name: [clip for clip in clips if clip.split == name] for name in ("train", "val")}
    if not all(splits.values()):
        raise ManifestError(
            f"{manifest} has {len(splits['train'])} train and {len(splits['val'])} val clips with features:"
            " training needs both."
        )
    return splits


def _load_tail(config: TrainConfig, view: Features, *, weights: Path) -> TailSource:
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
