"""Parameters over parameters: overlays of them, and the flags of `dvc exp run` from one to another."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.errors import ConfigError

_BARE_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)$)[a-z_/][a-z0-9_./-]*", re.ASCII | re.IGNORECASE)


def overlaid(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `changes`; where both have a mapping, its keys are overlaid likewise."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = overlaid(base[key], value) if both else value
    return merged


def flags(now: Mapping[str, Any], wanted: Mapping[str, Any], *, parents: str = "") -> Iterator[str]:
    """The flags of `dvc exp run` that turn the parameters `now` into `wanted`, in Hydra's override grammar.

    No value has a space, so that a shell splits the flags into the right words without quotes. Raises
    ConfigError for a text that has one.
    """
    for key, value in wanted.items():
        name = f"{parents}{key}"
        if key not in now:
            yield f"-S ++{name}={_in_hydra(value)}"
        elif isinstance(value, dict) and isinstance(now[key], dict):
            yield from flags(now[key], value, parents=f"{name}.")  # Hydra would merge the two
        elif value != now[key]:
            yield f"-S {name}={_in_hydra(value)}"
    for key in (key for key in now if key not in wanted):
        if now[key] is None:
            yield f"-S {parents}{key}=0"  # Hydra can't remove a key whose value is null
        yield f"-S ~{parents}{key}"


def _in_hydra(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_in_hydra(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_in_hydra, value)) + "]"
    if isinstance(value, str) and re.search(r"[\s\\]", value):
        raise ConfigError(
            f"A recipe's flags can't hold the space or backslash of {value!r}: use params.yaml."
        )
    bare = isinstance(value, str) and _BARE_WORD.fullmatch(value)
    return str(value) if bare else json.dumps(value, ensure_ascii=False)
