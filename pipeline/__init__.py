"""framecache: frozen CNN features, computed once, kept in a chunked store, streamed into RNNs.

Its six verbs, see docs/library.md:

    extract          clips -> features         evaluate    a trained model -> scores
    open_features    features -> arrays        predict     new sources -> answers
    train            features -> a model       export      a trained model -> one file

Axis letters used throughout:

    N  rows of a feature store         L  steps of a sequence
    T  frames of a clip                D  features of a step
    C  channels of a feature map       B  batch
    H  height of a map or image        K  classes
    W  width of a map or image         V  vocabulary
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.deploy.export import export as export
    from pipeline.deploy.prediction import predict as predict
    from pipeline.extraction import extract as extract
    from pipeline.learn.comparison import evaluate as evaluate
    from pipeline.learn.open_features import open_features as open_features
    from pipeline.learn.run import train as train
    from pipeline.manifest import read_manifest as read_manifest
    from pipeline.settings.evaluation import EvaluateConfig as EvaluateConfig
    from pipeline.settings.extract import ExtractConfig as ExtractConfig
    from pipeline.settings.machine import Machine as Machine
    from pipeline.settings.training import TrainConfig as TrainConfig

__version__ = "0.1.0"

# Where each name is. It is imported when it is first used: torch alone takes seconds.
_HOMES = {
    "EvaluateConfig": "pipeline.settings.evaluation",
    "ExtractConfig": "pipeline.settings.extract",
    "Machine": "pipeline.settings.machine",
    "TrainConfig": "pipeline.settings.training",
    "evaluate": "pipeline.learn.comparison",
    "export": "pipeline.deploy.export",
    "extract": "pipeline.extraction",
    "open_features": "pipeline.learn.open_features",
    "predict": "pipeline.deploy.prediction",
    "read_manifest": "pipeline.manifest",
    "train": "pipeline.learn.run",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
