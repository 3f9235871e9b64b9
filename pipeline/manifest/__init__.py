"""The manifest: clips, what their columns mean, and whether their sources can be read."""

from pipeline.manifest.clips import SCHEMA, SPLITS, Clip, FrameLabel, Question, split_named
from pipeline.manifest.manifest import (
    Manifest,
    check_sources,
    column_names,
    read_manifest,
    read_table,
    source_faults,
    write_manifest,
)
from pipeline.manifest.sources import Fault, fault_of, fault_sentences

__all__ = [
    "SCHEMA",
    "SPLITS",
    "Clip",
    "Fault",
    "FrameLabel",
    "Manifest",
    "Question",
    "check_sources",
    "column_names",
    "fault_of",
    "fault_sentences",
    "read_manifest",
    "read_table",
    "source_faults",
    "split_named",
    "write_manifest",
]
