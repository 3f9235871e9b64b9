"""Manifests of corpora: a folder tree or a CSV of one's own; UCF101 and Kinetics by their official lists."""

from pipeline.corpora.build import Built, build_manifest
from pipeline.corpora.files import Corpus, walk
from pipeline.corpora.folder import folder_corpus, name_clips
from pipeline.corpora.kinetics import kinetics_corpus
from pipeline.corpora.labels import labels_corpus
from pipeline.corpora.measure import Measured, measure_clips, readable, write_measured
from pipeline.corpora.splits import components, group_by_pattern, group_by_source, split_classes
from pipeline.corpora.ucf101 import ucf101_corpus

__all__ = [
    "Built",
    "Corpus",
    "Measured",
    "build_manifest",
    "components",
    "folder_corpus",
    "group_by_pattern",
    "group_by_source",
    "kinetics_corpus",
    "labels_corpus",
    "measure_clips",
    "name_clips",
    "readable",
    "split_classes",
    "ucf101_corpus",
    "walk",
    "write_measured",
]
