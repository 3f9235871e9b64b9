"""Manifests of corpora: a folder tree or a CSV of one's own; public data sets by their official lists."""

from pipeline.corpora.build import Built, build_manifest
from pipeline.corpora.charades import charades_corpus
from pipeline.corpora.features import MANIFEST, Labelled, labels_beside, write_labels
from pipeline.corpora.files import Corpus, walk
from pipeline.corpora.folder import folder_corpus, name_clips
from pipeline.corpora.folds import draw_folds, listed_folds, merge_splits
from pipeline.corpora.hmdb51 import hmdb51_corpus
from pipeline.corpora.kinetics import kinetics_corpus
from pipeline.corpora.labels import labels_corpus, table_clips
from pipeline.corpora.measure import Measured, measure_clips, readable, write_measured
from pipeline.corpora.mstcn import SEGMENTED, mstcn_corpus
from pipeline.corpora.splits import components, group_by_pattern, group_by_source, split_classes
from pipeline.corpora.ssv2 import ssv2_corpus
from pipeline.corpora.ucf101 import ucf101_corpus

__all__ = [
    "MANIFEST",
    "SEGMENTED",
    "Built",
    "Corpus",
    "Labelled",
    "Measured",
    "build_manifest",
    "charades_corpus",
    "components",
    "draw_folds",
    "folder_corpus",
    "group_by_pattern",
    "group_by_source",
    "hmdb51_corpus",
    "kinetics_corpus",
    "labels_beside",
    "labels_corpus",
    "listed_folds",
    "measure_clips",
    "merge_splits",
    "mstcn_corpus",
    "name_clips",
    "readable",
    "split_classes",
    "ssv2_corpus",
    "table_clips",
    "ucf101_corpus",
    "walk",
    "write_labels",
    "write_measured",
]
