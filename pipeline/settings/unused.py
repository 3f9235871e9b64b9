"""Unused settings: those that cannot change a result under the values of the others.

They are a mapping from each dotted key to the reason, such as `it needs optimizer sgd`. A section of which
nothing counts is one key.
"""

import json
from collections.abc import Container, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from pipeline.registry import either


def only_of(key: str, choice: str, choices: Mapping[str, object], fact: str) -> str:
    """Why a setting that only choices with this fact have does nothing, where `key` is `choice`.

    "" if the choice has the fact.
    """
    if getattr(choices[choice], fact):
        return ""
    return f"it needs {key} {either(name for name, facts in choices.items() if getattr(facts, fact))}"


def live_values(config: BaseModel, unused: Mapping[str, str]) -> dict[str, Any]:
    """The values, ready for JSON, of all settings but the unused ones."""
    return without(config.model_dump(mode="json"), unused)


def without(values: Mapping[str, Any], unused: Container[str], *, parents: str = "") -> dict[str, Any]:
    """The values without those whose dotted keys are unused; `parents` is the prefix of all keys."""
    return {
        key: without(value, unused, parents=f"{parents}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{parents}{key}" not in unused
    }


def explain_unused(config: BaseModel, unused: Mapping[str, str]) -> str:
    """A sentence for each unused setting whose value is not its default; "" if there is none."""
    values, defaults = config.model_dump(mode="json"), type(config).model_construct().model_dump(mode="json")
    return ". ".join(
        f"{key} {_text(value)} does nothing: {reason}; take it out, or set it to {_text(default)}"
        for section, reason in unused.items()
        for key, value, default in _changes(section, _at(values, section), _at(defaults, section))
    )


def _at(values: dict[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def _changes(key: str, value: Any, default: Any) -> Iterator[tuple[str, Any, Any]]:
    """Key, value and default of each setting in the section `key` that is not its default."""
    if isinstance(value, dict):
        for name in value:
            yield from _changes(f"{key}.{name}", value[name], default[name])
    elif value != default:
        yield key, value, default


def _text(value: Any) -> str:
    """As YAML has it."""
    return repr(value) if isinstance(value, str) else json.dumps(value)
