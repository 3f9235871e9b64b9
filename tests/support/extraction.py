"""Weights, settings and sources of an extraction, and the extraction."""

import functools
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.backbone import Backbone, Weights
from pipeline.backbone.sources import obtain_weights
from pipeline.extraction import (
    Result,
    compute_clips,
    extracting_backbone,
    make_plan,
    make_targets,
    publish_view,
)
from pipeline.extraction.write import OnWork
from pipeline.manifest import Clip
from pipeline.manifest.recorded import Sources, scan_sources
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.settings.weights import WeightsConfig
from pipeline.store import DigestCache, Journal
from pipeline.system.devices import resolve_device


@functools.cache
def random_weights() -> Weights:
    """A resnet18 of seed 0, made once; copy it, don't change it."""
    return obtain_weights(WeightsConfig(arch="resnet18", source="random:0"))


def settings_of(fields: Mapping[str, object]) -> tuple[ExtractConfig, Machine]:
    """Those of ExtractConfig and those of Machine."""
    own = {name: value for name, value in fields.items() if name not in Machine.model_fields}
    machine = {name: value for name, value in fields.items() if name in Machine.model_fields}
    return ExtractConfig.model_validate(own), Machine.model_validate(machine)


def sources_of(clips: Iterable[Clip], *, root: Path, digests: DigestCache) -> Sources:
    """The sources of these clips, read below `root`."""
    return scan_sources({source for clip in clips for source in clip.sources}, root=root, digests=digests)


def make_backbone(weights: Weights, config: ExtractConfig, *, device: str = "cpu") -> Backbone:
    return extracting_backbone(weights, config, device=resolve_device(device), backend=config.backend)


def extract(
    clips: list[Clip],
    root: Path,
    weights: Weights,
    path: Path,
    on_progress: OnWork = lambda _clips, _frames, _bytes: None,
    stop: threading.Event | None = None,
    backbone: Backbone | None = None,
    **changes: object,
) -> tuple[Result, Path]:
    """Plan, run and publish; the features' folder."""
    fields = {
        "taps": ["layer4"],
        "preprocessing": {"resize": 32, "crop": 32},
        "batch_size": 4,
        "device": "cpu",
        **changes,
    }
    config, machine = settings_of(fields)
    backbone = backbone or make_backbone(weights, config, device=machine.device)
    targets = make_targets(config, weights, backbone)
    journal = Journal(path / "journal")
    sources = sources_of(clips, root=root, digests=journal.digest_cache())
    todo = make_plan(clips, sources=sources, targets=targets, journal=journal)
    result = compute_clips(
        todo.to_extract,
        root=root,
        targets=targets,
        backbone=backbone,
        journal=journal,
        config=config,
        machine=machine,
        on_progress=on_progress,
        stop=stop,
    )
    publish_view(todo.keys, targets=targets, journal=journal, path=path / "features")
    return result, path / "features"
