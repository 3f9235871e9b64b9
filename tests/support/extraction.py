"""Settings and sources of an extraction."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.manifest import Clip
from pipeline.manifest.recorded import Sources, scan_sources
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.store import DigestCache


def settings_of(fields: Mapping[str, object]) -> tuple[ExtractConfig, Machine]:
    """Those of ExtractConfig and those of Machine."""
    own = {name: value for name, value in fields.items() if name not in Machine.model_fields}
    machine = {name: value for name, value in fields.items() if name in Machine.model_fields}
    return ExtractConfig.model_validate(own), Machine.model_validate(machine)


def sources_of(clips: Iterable[Clip], *, root: Path, digests: DigestCache) -> Sources:
    """The sources of these clips, read below `root`."""
    return scan_sources({source for clip in clips for source in clip.sources}, root=root, digests=digests)
