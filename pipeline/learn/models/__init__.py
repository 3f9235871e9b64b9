"""Networks from feature maps (B, T, C, H, W) to answers about clips or frames, and to words."""

from pipeline.learn.models.clip import MODEL_CLASSES, ClipModel, MeanPoolModel, SequenceModel, build_model
from pipeline.learn.models.encoder import RecurrentEncoder
from pipeline.learn.models.summaries import SUMMARIES

__all__ = [
    "MODEL_CLASSES",
    "SUMMARIES",
    "ClipModel",
    "MeanPoolModel",
    "RecurrentEncoder",
    "SequenceModel",
    "build_model",
]
