"""YAML files of settings, checked by the pydantic model of the code that uses them."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError
from pipeline.settings.machine import Machine
from pipeline.system.text_files import read_text

Config = TypeVar("Config", bound=BaseModel)


def read_mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file, unchecked; none of an empty one.

    Raises ConfigError for a file that is missing or no YAML mapping; TextFileError for one that is no text.
    """
    try:
        document = yaml.safe_load(read_text(path)) or {}
    except FileNotFoundError:
        raise ConfigError(f"No {path} in {Path.cwd()}. Run stages from the repository's root.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must be a mapping of keys to values.")
    return document


def checked(values: object, model: type[Config], *, path: Path) -> Config:
    """The model of these values, which are in the file `path`.

    Raises ConfigError, which names every wrong key, its value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(problem, model) for problem in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{path}: {line}" for line in lines)) from None


def _explain(problem: Any, model: type[BaseModel]) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        if problem["loc"][-1] in Machine.model_fields:
            return f"unknown key {key!r}: no result depends on it, so its place is machine.yaml."
        allowed = _fields_at(model, problem["loc"][:-1])
        hint = f" Available: {', '.join(allowed)}." if allowed else ""
        return f"unknown key {key!r}.{hint}"
    if problem["type"] == "missing":
        return f"{key} is missing."
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if isinstance(problem["input"], dict):  # of several parameters, which the message names
        return f"{key}: {message}." if key else f"{message}."
    return f"{key}: {problem['input']!r} is not allowed. {message[:1].upper()}{message[1:]}."


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
