"""Networks from feature maps (B, T, C, H, W) to answers about clips or frames, and to words."""

from pipeline.learn.models.cells import CELLS
from pipeline.learn.models.clip import MODELS, ClipModel, MeanPoolModel, SequenceModel, build_model
from pipeline.learn.models.config import ModelConfig
from pipeline.learn.models.encoder import RecurrentEncoder
from pipeline.learn.models.frame_nets import FRAME_NETS
from pipeline.learn.models.summaries import SUMMARIES

__all__ = [
    "CELLS",
    "FRAME_NETS",
    "MODELS",
    "SUMMARIES",
    "ClipModel",
    "MeanPoolModel",
    "ModelConfig",
    "RecurrentEncoder",
    "SequenceModel",
    "build_model",
]
