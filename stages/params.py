"""params.yaml: what people vary, a section a stage. All other settings have their defaults in code."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.errors import ConfigError
from pipeline.settings.corpus import CorpusConfig
from pipeline.settings.evaluation import EvaluateConfig
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.training import TrainConfig
from pipeline.settings.weights import WeightsConfig
from stages.yaml_files import checked, read_mapping

PARAMS = Path("params.yaml")


class Params(BaseModel):
    """All settings: params.yaml over the defaults in code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: CorpusConfig
    weights: WeightsConfig = WeightsConfig()
    extract: ExtractConfig = ExtractConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()


def read_params(path: Path = PARAMS) -> Params:
    """The settings that a params.yaml asks for.

    Raises ConfigError, which names every wrong key, its value and what is allowed; TextFileError for a file
    that is no text.
    """
    return params_of(read_document(path), path=path)


def read_document(path: Path = PARAMS) -> dict[str, Any]:
    """What a params.yaml says, unchecked. Raises ConfigError and TextFileError as `read_params` does."""
    return {name: values for name, values in read_mapping(path).items() if values is not None}


def params_of(document: Mapping[str, Any], *, path: Path) -> Params:
    """The settings that a document asks for, which is in the file `path`. Raises ConfigError."""
    for key, value in _leaves("", document):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}: {key}: {value} is not allowed. Give a finite number.")
    return checked(document, Params, path=path)


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}".lstrip("."), item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(key, item)
    else:
        yield key, value
