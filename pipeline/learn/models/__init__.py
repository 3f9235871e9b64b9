"""Networks from feature maps (B, T, C, H, W) to answers of clips or frames, and to words."""

from pipeline.learn.models.clip import MODELS, MeanPoolModel, ModelConfig, RecurrentModel, build_model
from pipeline.learn.models.encoder import RecurrentEncoder
from pipeline.learn.models.summaries import SUMMARIES

__all__ = [
    "MODELS",
    "SUMMARIES",
    "MeanPoolModel",
    "ModelConfig",
    "RecurrentEncoder",
    "RecurrentModel",
    "build_model",
]
