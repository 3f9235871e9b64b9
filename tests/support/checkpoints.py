"""Checkpoints whose models were never trained: what they answer is arbitrary, and depends on every frame."""

from pathlib import Path

import onnxruntime

from pipeline.backbone import Weights
from pipeline.backbone.networks import map_shape
from pipeline.backbone.tails import tail_module
from pipeline.contract import FeatureContract, Preprocessing, Sampling
from pipeline.learn.checkpoint import Checkpoint
from pipeline.learn.tasks import (
    Captioning,
    Classification,
    Ctc,
    FrameLabels,
    FrameMultilabel,
    FrameWords,
    Multilabel,
    QuestionAnswering,
    Regression,
    Task,
)
from pipeline.learn.vocabulary import Vocabulary
from pipeline.settings.words import WordsConfig
from tests.support.configs import live_config

CLASSES = ("left", "right", "up")
TASKS: dict[str, Task] = {
    "classification": Classification(CLASSES),
    "frame_labels": FrameLabels(CLASSES),
    "multilabel": Multilabel(CLASSES, thresholds=(0.3, 0.5, 0.6)),
    "frame_multilabel": FrameMultilabel(CLASSES, thresholds=(0.3, 0.5, 0.6)),
    "regression": Regression((10.0, -5.0), (2.0, 0.5)),
    "captioning": Captioning(
        Vocabulary.from_texts(["one moves left", "two stays"]), WordsConfig(max_words=6)
    ),
    "frame_words": FrameWords(Vocabulary.from_texts(["one moves left", "two stays"]), WordsConfig()),
    "ctc": Ctc(Vocabulary.from_texts(["one moves left", "two stays"]), WordsConfig(beam_size=3)),
    "question_answering": QuestionAnswering(Vocabulary.from_texts(["which is it?"]), ("one", "two", "yes")),
}


def make_checkpoint(
    name: str, weights: Weights, *, tap: str = "layer4", sampling: object = "all", **options: object
) -> Checkpoint:
    """A recurrent model for the task `name` on maps of 32-pixel frames; `options` are the model's."""
    contract = FeatureContract(
        sampling=Sampling.model_validate(sampling),
        preprocessing=Preprocessing(resize=40, crop=32),
        mean=weights.mean,
        std=weights.std,
        arch=weights.arch,
        weights_sha256=weights.sha256,
        tap=tap,
    )
    defaults = {"tap": tap, "task": name, "hidden_size": 5, "projection": 8, "bidirectional": True}
    config = live_config(**{**defaults, **options})
    tail = None
    if config.tail:
        tail = tail_module(weights.arch, after=tap, until=config.tail, state=weights.state)
    shape = map_shape(weights.arch, tap, height=32, width=32)
    model = TASKS[name].build_model("recurrent", config, map_shapes=[shape], tail=tail, seed=3).eval()
    return Checkpoint("recurrent", model, TASKS[name], config, (contract,), (shape,), {}, weights.source)


def open_onnx(path: Path) -> onnxruntime.InferenceSession:
    """An exported file in ONNX Runtime itself, on one thread: several would wait for each other spinning."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)
