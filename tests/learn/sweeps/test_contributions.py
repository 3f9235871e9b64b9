"""Contributions of keys: means of the members' metric by value."""

import pytest

from pipeline.learn.sweeps.contributions import ValueMean, contributions


def test_each_key_has_the_mean_of_each_value_and_the_largest_range_comes_first() -> None:
    members = [
        {"train.hidden_size": size, "train.cell": cell, "train.epochs": 20}
        for size in (128, 64)
        for cell in ("gru", "lstm")
    ]
    found = contributions(members, [0.9, 0.8, 0.7, 0.4])
    assert [each.key for each in found] == ["train.hidden_size", "train.cell"]  # epochs are all the same
    assert found[0].values == (
        ValueMean("64", 2, pytest.approx(0.55), 0.4, 0.7),  # type: ignore[arg-type]
        ValueMean("128", 2, pytest.approx(0.85), 0.8, 0.9),  # type: ignore[arg-type]
    )
    assert found[0].range == pytest.approx(0.3)
    assert [value.value for value in found[1].values] == ["gru", "lstm"]
    assert found[1].range == pytest.approx(0.2)


def test_members_without_the_key_are_a_value_of_their_own() -> None:
    members = [{"train.num_heads": 4}, {"train.num_heads": 2}, {}]
    (found,) = contributions(members, [0.5, 0.6, 0.7])
    assert [(value.value, value.mean) for value in found.values] == [("2", 0.6), ("4", 0.5), ("-", 0.7)]


def test_many_numbers_are_put_together_in_thirds() -> None:
    rates = [0.001, 0.002, 0.003, 0.01, 0.02, 0.03, 0.1, 0.2, 0.3]
    (found,) = contributions([{"train.learning_rate": rate} for rate in rates], list(range(9)))
    assert [(value.value, value.num_members, value.mean) for value in found.values] == [
        ("0.001 to 0.003", 3, 1),
        ("0.01 to 0.03", 3, 4),
        ("0.1 to 0.3", 3, 7),
    ]


def test_null_true_and_numbers_are_values_too() -> None:
    members = [{"train.window": None}, {"train.window": 4}, {"train.window": True}]
    (found,) = contributions(members, [1, 2, 3])
    assert [value.value for value in found.values] == ["4", "null", "true"]
