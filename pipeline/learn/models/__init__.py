"""Networks from feature maps (B, T, C, H, W) to answers about clips or frames, and to words."""

from pipeline.learn.models.clip import MODELS, ClipModel, MeanPoolModel, SequenceModel, build_model
from pipeline.learn.models.encoder import RecurrentEncoder
from pipeline.learn.models.summaries import SUMMARIES

__all__ = [
    "MODELS",
    "SUMMARIES",
    "ClipModel",
    "MeanPoolModel",
    "RecurrentEncoder",
    "SequenceModel",
    "build_model",
]
