"""Networks from feature maps (B, T, C, H, W) to answers about clips or frames, and to words."""

from pipeline.learn.models.clip import (
    MODEL_CLASSES,
    ClipModel,
    LateFusion,
    MeanPoolModel,
    SequenceModel,
    build_late_fusion,
    build_model,
)
from pipeline.learn.models.encoder import RecurrentEncoder
from pipeline.learn.models.summaries import SUMMARIES

__all__ = [
    "MODEL_CLASSES",
    "SUMMARIES",
    "ClipModel",
    "LateFusion",
    "MeanPoolModel",
    "RecurrentEncoder",
    "SequenceModel",
    "build_late_fusion",
    "build_model",
]
