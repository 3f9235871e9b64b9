"""Manifests of corpora: a folder tree of one's own, and the official lists of UCF101 and Kinetics."""

from pipeline.corpora.files import Corpus
from pipeline.corpora.folder import folder_corpus
from pipeline.corpora.kinetics import kinetics_corpus
from pipeline.corpora.ucf101 import ucf101_corpus

__all__ = ["Corpus", "folder_corpus", "kinetics_corpus", "ucf101_corpus"]
