"""Job: what an extraction is asked for, with network and journal at hand."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.backbone import Backbone
from pipeline.backbone.presets import trained_preprocessing
from pipeline.backbone.weights import load_weights
from pipeline.extraction.plan import Plan, make_plan
from pipeline.extraction.targets import Target, extracting_backbone, make_targets
from pipeline.manifest import Clip, Manifest, check_sources, fault_of
from pipeline.manifest.recorded import NO_RECORD, Contents, Sources
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.store import DigestCache, Journal
from pipeline.system.devices import resolve_device
from pipeline.system.own_code import OwnCode


@dataclass(frozen=True)
class Job:
    """The clips, the network and the targets of an extraction, and the journal that it fills."""

    config: ExtractConfig
    machine: Machine
    manifest: Manifest
    root: Path  # of the clips' sources
    recorded: Contents  # stands for a source that can't be read below `root`
    weights: Path  # the backbone's weights file
    own: OwnCode | None  # that builds the network, where it is not torchvision's
    backbone: Backbone
    targets: tuple[Target, ...]
    journal: Journal
    digests: DigestCache

    @cached_property
    def clips(self) -> tuple[Clip, ...]:
        """The manifest's clips."""
        return tuple(self.manifest)

    @property
    def forward_digest(self) -> str:
        """Digest of the forward contract, which all targets share."""
        return self.targets[0].contract.forward_digest()

    def plan(
        self,
        sources: Sources,
        *,
        copies: Mapping[str, AbstractSet[bytes]] | None = None,
        retried: AbstractSet[bytes] = frozenset(),
    ) -> Plan:
        """What is missing in the journal now; see `make_plan`."""
        return make_plan(
            self.clips,
            sources=sources,
            targets=self.targets,
            journal=self.journal,
            damaged=self.config.damaged,
            min_frames=self.config.min_frames,
            copies=copies,
            retried=retried,
        )


def make_job(
    manifest: Manifest,
    *,
    root: Path,
    weights: Path,
    config: ExtractConfig,
    machine: Machine = Machine(),
    journal: Path,
    own: OwnCode | None = None,
    recorded: Contents = NO_RECORD,
    only_plan: bool = False,
) -> Job:
    """Check what can be checked before anything is computed, and put a job together.

    `own` is the user's code that builds the network: no other than this is imported. `recorded` stands for
    the content of sources that can't be read here: features of it need no source. With `only_plan`, no
    journal is created and the network is not compiled.

    Raises ManifestError when no source can be read or is recorded, WeightsFileError, ForeignWeightsError,
    ConfigError for what this machine or network can't do, and StoreError for a journal that can't be used.
    """
    if not any(source in recorded or not fault_of(root, source) for source in manifest.sources()):
        check_sources(manifest, root=root)  # nothing is there: it is the root that is wrong
    trained = load_weights(weights, own=own)
    config = config.with_preprocessing(trained_preprocessing(trained.arch, trained.source))
    on_dask = machine.dask and not only_plan  # workers have networks of their own; this one knows shapes
    backbone = extracting_backbone(
        trained,
        config if not on_dask else config.model_copy(update={"precision": "float32"}),
        device=torch.device("cpu") if on_dask else resolve_device(machine.device),
        backend="eager" if on_dask or only_plan else config.backend,
    )
    targets = make_targets(config, trained, backbone)
    opened = Journal(journal, create=not only_plan)
    return Job(
        config=config,
        machine=machine,
        manifest=manifest,
        root=root,
        recorded=recorded,
        weights=weights,
        own=trained.own,
        backbone=backbone,
        targets=tuple(targets),
        journal=opened,
        digests=opened.digest_cache(),
    )
