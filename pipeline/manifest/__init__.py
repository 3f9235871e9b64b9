"""The manifest: clips, what their columns mean, and whether their sources can be read."""

from pipeline.manifest.clips import (
    Clip,
    FrameLabel,
    Question,
)
from pipeline.manifest.manifest import (
    Manifest,
    check_sources,
    column_names,
    read_manifest,
    read_table,
    report_faults,
    source_faults,
    write_manifest,
)
from pipeline.manifest.rules import (
    SCHEMA,
    SPLITS,
)

__all__ = [
    "SCHEMA",
    "SPLITS",
    "Clip",
    "FrameLabel",
    "Manifest",
    "Question",
    "check_sources",
    "column_names",
    "read_manifest",
    "read_table",
    "report_faults",
    "source_faults",
    "write_manifest",
]
