"""Settings that name an entry of a registry: a dict from the name that users write to what it stands for."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError


def one_of(registry: Mapping[str, object]) -> BeforeValidator:
    """Validate a setting that names an entry of `registry`.

    A field's type is then `Annotated[str, one_of(CELLS)]`. The registry is read at each validation: a key
    that is added later is valid, too. Other values are refused with all keys, as Literal does it: "Input
    should be 'gru', 'lstm' or 'rnn'".
    """

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in registry:
            return value
        expected = either(map(repr, registry))
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})

    literal: Any = Literal
    return BeforeValidator(check, json_schema_input_type=literal[tuple(registry)])


def either(names: Iterable[str]) -> str:
    """The names of a choice, for a sentence: `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
