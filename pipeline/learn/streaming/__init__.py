"""Streaming: clips flow from a store, or from memory, into padded batches. And statistics of channels."""

from pipeline.learn.streaming.features import Features, ResidentFeatures, keep_resident, with_features
from pipeline.learn.streaming.loader import Batch, Loader, LoaderConfig, Sample, make_loader
from pipeline.learn.streaming.statistics import Standardisation, channel_statistics

__all__ = [
    "Batch",
    "Features",
    "Loader",
    "LoaderConfig",
    "ResidentFeatures",
    "Sample",
    "Standardisation",
    "channel_statistics",
    "keep_resident",
    "make_loader",
    "with_features",
]
