"""Settings that name an entry of a registry."""

from typing import Annotated

import pytest
from pydantic import BaseModel, ValidationError

from pipeline.registry import one_of

PETS = {"cat": "meow", "dog": "woof", "fish": ""}


class Config(BaseModel):
    pet: Annotated[str, one_of(PETS)] = "cat"
    other: Annotated[str, one_of(PETS)] | None = None


@pytest.mark.parametrize("value", ["cow", 5, None, ["cat"]])
def test_another_value_is_refused_with_all_keys(value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"pet": value})
    (problem,) = caught.value.errors()
    assert (problem["loc"], problem["msg"]) == (("pet",), "Input should be 'cat', 'dog' or 'fish'")
    assert problem["input"] == value


def test_an_optional_field_may_be_none_and_names_its_choices_once() -> None:
    assert Config(other=None).other is None
    with pytest.raises(ValidationError) as caught:
        Config(other="cow")
    assert [problem["msg"] for problem in caught.value.errors()] == ["Input should be 'cat', 'dog' or 'fish'"]


def test_an_entry_that_is_added_is_a_valid_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PETS, "cow", "moo")
    assert Config(pet="cow").pet == "cow"
