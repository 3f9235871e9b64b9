"""Streaming: from features in a store, or in memory, to padded batches; and statistics of channels."""

from pipeline.learn.streaming.features import (
    Features,
    ResidentFeatures,
    keep_all_resident,
    keep_resident,
    with_features,
)
from pipeline.learn.streaming.loader import Batch, Loader, make_loader
from pipeline.learn.streaming.samples import Sample
from pipeline.learn.streaming.statistics import Standardisation, channel_statistics
from pipeline.learn.streaming.streams import FusedFeatures, MapShape, Place, places, streams_of
from pipeline.learn.streaming.views import open_views

__all__ = [
    "Batch",
    "Features",
    "FusedFeatures",
    "Loader",
    "MapShape",
    "Place",
    "ResidentFeatures",
    "Sample",
    "Standardisation",
    "channel_statistics",
    "keep_all_resident",
    "keep_resident",
    "make_loader",
    "open_views",
    "places",
    "streams_of",
    "with_features",
]
