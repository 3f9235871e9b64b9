"""params.yaml: one section a stage, checked by the pydantic model of the code that uses it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ConfigError
from pipeline.system.text_files import read_text

PARAMS = Path("params.yaml")
SECTIONS = ("corpus", "weights", "extract", "train", "evaluate")

Config = TypeVar("Config", bound=BaseModel)


class CorpusConfig(BaseModel):
    """Where the clips are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    manifest: str  # CSV or Parquet, one row a clip; see manifests/README.md
    root: str  # the folder that the manifest's sources are relative to


def load_section(name: str, model: type[Config], *, path: Path = PARAMS) -> Config:
    """The section `name` of params.yaml, checked by `model`.

    Raises ConfigError, which names every wrong key, its value and what is allowed; TextFileError for a file
    that is no text.
    """
    document = read_mapping(path)
    unknown = [str(key) for key in document if key not in SECTIONS]
    if unknown:
        raise ConfigError(f"{path}: unknown section {unknown[0]!r}. Available: {', '.join(SECTIONS)}.")
    if name not in document:
        raise ConfigError(f"{path}: section {name!r} is missing.")
    for key, value in _leaves(name, document[name]):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}: {key}: {value} is not allowed. Give a finite number, or null.")
    return checked(document[name], model, path=path, parents=(name,))


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked.

    Raises ConfigError for a file that is missing or no YAML mapping; TextFileError for one that is no text.
    """
    try:
        document = yaml.safe_load(read_text(path))
    except FileNotFoundError:
        raise ConfigError(f"No {path} in {Path.cwd()}. Run stages from the repository's root.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must be a mapping of keys to values.")
    return document


def checked(values: object, model: type[Config], *, path: Path, parents: tuple[str, ...] = ()) -> Config:
    """The model of these values, which are in the file `path` below the keys `parents`.

    Raises ConfigError, which names every wrong key, its value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(parents, problem, model) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(f"{key}.{name}", item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(key, item)
    else:
        yield key, value


def _explain(parents: tuple[str, ...], problem: Any, model: type[BaseModel]) -> str:
    key = ".".join(map(str, (*parents, *problem["loc"])))
    if problem["type"] == "extra_forbidden":
        allowed = _fields_at(model, problem["loc"][:-1])
        hint = f" Available: {', '.join(allowed)}." if allowed else ""
        return f"unknown key {key!r}.{hint}"
    if problem["type"] == "missing":
        return f"{key} is missing."
    message = problem["msg"].removeprefix("Value error, ")
    if isinstance(problem["input"], dict):  # of several parameters, which the message names
        return f"{key}: {message}."
    return f"{key}: {problem['input']!r} is not allowed. {message}."


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
