"""The manifest: clips, what their columns mean, and the files that their sources are."""

from pipeline.manifest.clips import (
    META,
    SCHEMA,
    SPLITS,
    TARGETS,
    UNUSED,
    Clip,
    FrameLabel,
    Question,
    is_split,
    split_named,
)
from pipeline.manifest.files import clip_of_folder, images_in_folder, is_image, is_video, source_files
from pipeline.manifest.manifest import (
    Manifest,
    check_clips,
    check_sources,
    clips_digest,
    column_names,
    read_manifest,
    read_table,
    source_faults,
    write_manifest,
)
from pipeline.manifest.sources import Fault, fault_of, fault_sentences

__all__ = [
    "META",
    "SCHEMA",
    "SPLITS",
    "TARGETS",
    "UNUSED",
    "Clip",
    "Fault",
    "FrameLabel",
    "Manifest",
    "Question",
    "check_clips",
    "check_sources",
    "clip_of_folder",
    "clips_digest",
    "column_names",
    "fault_of",
    "fault_sentences",
    "images_in_folder",
    "is_image",
    "is_split",
    "is_video",
    "read_manifest",
    "read_table",
    "source_faults",
    "source_files",
    "split_named",
    "write_manifest",
]
