"""Job: what an extraction is asked for, with network and journal at hand."""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.backbone import Backbone
from pipeline.backbone.weights import load_weights
from pipeline.extraction.plan import Plan, make_plan
from pipeline.extraction.targets import Target, make_targets
from pipeline.manifest import Clip, Manifest, check_sources, source_faults
from pipeline.manifest.sources import Fault
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.store import DigestCache, Journal
from pipeline.system.devices import resolve_device

_MACHINE = Machine()


@dataclass(frozen=True)
class Job:
    """The clips, the network and the targets of an extraction, and the journal that it fills."""

    config: ExtractConfig
    machine: Machine
    clips: tuple[Clip, ...]
    root: Path  # of the clips' sources
    faults: Mapping[str, Fault]  # by name, the sources that can't be read
    weights: Path  # the backbone's weights file
    backbone: Backbone
    targets: tuple[Target, ...]
    journal: Journal
    digests: DigestCache

    @property
    def forward_digest(self) -> str:
        """Digest of the forward contract, which all targets share."""
        return self.targets[0].contract.forward_digest()

    def plan(
        self,
        *,
        copies: Mapping[str, AbstractSet[bytes]] | None = None,
        retried: AbstractSet[bytes] = frozenset(),
    ) -> Plan:
        """What is missing in the journal now; see `make_plan`."""
        return make_plan(
            self.clips,
            root=self.root,
            targets=self.targets,
            journal=self.journal,
            digests=self.digests,
            damaged=self.config.damaged,
            min_frames=self.config.min_frames,
            copies=copies,
            retried=retried,
            faults=self.faults,
        )


def make_job(
    manifest: Manifest,
    *,
    root: Path,
    weights: Path,
    config: ExtractConfig,
    machine: Machine = _MACHINE,
    journal: Path,
    only_plan: bool = False,
) -> Job:
    """Check what can be checked before anything is computed, and put a job together.

    With `only_plan`, no journal is created and the network is not compiled.

    Raises ManifestError when no clip's sources can be read, WeightsFileError, ForeignWeightsError,
    ConfigError for what this machine or network can't do, and StoreError for a journal that can't be used.
    """
    faults = source_faults(manifest, root=root)
    if all(faults.keys() & set(clip.sources) for clip in manifest):
        check_sources(manifest, root=root)  # nothing is there: it is the root that is wrong
    trained = load_weights(weights)
    if machine.dask and not only_plan:  # Dask's workers have networks of their own; this one knows shapes
        backbone = Backbone(trained, taps=config.taps, device=torch.device("cpu"))
    else:
        backbone = Backbone(
            trained,
            taps=config.taps,
            device=resolve_device(machine.device),
            precision=config.precision,
            backend="eager" if only_plan else config.backend,
        )
    targets = make_targets(config, trained, backbone)
    opened = Journal(journal, create=not only_plan)
    return Job(
        config=config,
        machine=machine,
        clips=tuple(manifest),
        root=root,
        faults=faults,
        weights=weights,
        backbone=backbone,
        targets=tuple(targets),
        journal=opened,
        digests=opened.digest_cache(),
    )
