"""The frozen network: which there are and their taps, where weights come from, and the forward pass."""

from pipeline.backbone.backbone import (
    Backbone,
    Weights,
    preprocess,
    seconds_saved_by_compiling,
)

__all__ = [
    "Backbone",
    "Weights",
    "preprocess",
    "seconds_saved_by_compiling",
]
