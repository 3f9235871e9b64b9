"""Many trainings at once: each member ends with the numbers that it has alone."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import NonFiniteError
from pipeline.learn.member import Member
from pipeline.learn.models.steps import share_steps
from pipeline.learn.training import fit_many
from pipeline.settings.training import MODELS, TrainConfig
from tests.support.configs import live_config
from tests.support.every_training import CONFIGS, SMALL, assert_equal_states, make_member

# They differ in learning rate, dropout, weight decay, size, cell and seed; the first two share their order.
SEVERAL: list[dict[str, Any]] = [
    {"learning_rate": 0.01, "dropout": 0.3},
    {"hidden_size": 5, "weight_decay": 0.1, "cell": "gru", "num_layers": 2},
    {"learning_rate": 0.03, "dropout": 0.6, "seed": 1, "cell": "transformer", "projection": None},
]


@pytest.fixture(autouse=True)
def one_thread_an_operation() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_members(configs: Sequence[TrainConfig], folder: Path) -> list[Member]:
    """The recurrent models of these configs; those of one seed share a loader, and all a val loader."""
    folder.mkdir(exist_ok=True)
    members = [
        make_member(config, "recurrent", folder / f"{number}.pt") for number, config in enumerate(configs)
    ]
    for member in members:
        member.train = next(other.train for other in members if other.config.seed == member.config.seed)
        member.val = members[0].val
    return members


def several() -> list[TrainConfig]:
    return [live_config(**{**SMALL, "epochs": 3, **changes}) for changes in SEVERAL]


def alone(configs: Sequence[TrainConfig], folder: Path) -> list[Member]:
    """The members of these configs, each trained by itself."""
    members = make_members(configs, folder)
    for member in members:
        fit_many([member])
    return members


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2)])
def test_a_member_has_the_numbers_that_it_has_alone_in_any_order_and_without_the_others(tmp_path, order):
    expected = alone(several(), tmp_path / "alone")
    members = make_members([several()[number] for number in order], tmp_path / "together")
    fit_many(members, num_threads=2)
    for number, member in zip(order, members, strict=True):
        assert_equal_states(member, expected[number])


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.slow
def test_trainings_of_every_kind_together_equal_each_alone(tmp_path, model):
    def make(name: str) -> list[Member]:
        (tmp_path / name).mkdir()
        return [
            make_member(live_config(**{**SMALL, **changes}), model, tmp_path / name / f"{number}.pt")
            for number, changes in enumerate(CONFIGS.values())
        ]

    each, together = make("each"), make("together")
    for member in each:
        fit_many([member])

    def num_batches(member: Member) -> int:
        return len(member.train)

    for _, group in groupby(sorted(together, key=num_batches), key=num_batches):
        fit_many(list(group), num_threads=2)
    for first, second in zip(each, together, strict=True):
        assert_equal_states(second, first)


def test_members_that_are_stopped_after_an_epoch_go_on_to_the_same_numbers(tmp_path):
    expected = alone(several(), tmp_path / "alone")
    for until in (1, 2, None):
        members = make_members(several(), tmp_path / "together")  # from the states on the disk
        fit_many(members, until=until, num_threads=2)
        assert [member.epoch for member in members] == [until or 3] * 3
        assert [member.is_done for member in members] == [until is None] * 3
    for member, alike in zip(members, expected, strict=True):
        assert_equal_states(member, alike)


@pytest.mark.parametrize("num_done", [1, 6, 7, 11, 14])
def test_members_that_are_interrupted_go_on_to_the_same_numbers(tmp_path, num_done):
    class Killed(BaseException):
        pass

    remaining = num_done

    def count_down(_: Member) -> None:
        nonlocal remaining
        remaining -= 1
        if remaining == 0:
            raise Killed

    expected = alone(several(), tmp_path / "alone")
    with pytest.raises(Killed):
        fit_many(make_members(several(), tmp_path / "together"), num_threads=2, on_batch=count_down)
    torch.rand(17)  # the random state of the new process is another one
    members = make_members(several(), tmp_path / "together")
    fit_many(members, num_threads=2)
    for member, alike in zip(members, expected, strict=True):
        assert_equal_states(member, alike)


def test_a_member_that_is_behind_the_others_trains_its_own_epochs(tmp_path):
    expected = alone(several(), tmp_path / "alone")
    fit_many(make_members(several()[:1], tmp_path / "together"), until=2)
    members = make_members(several(), tmp_path / "together")
    epochs: list[tuple[str, int]] = []
    fit_many(members, on_epoch=lambda member, _: epochs.append((member.state_path.stem, member.epoch)))
    assert epochs[:4] == [("0", 2), ("0", 2), ("1", 1), ("2", 1)]  # those before the resume are told again
    for member, alike in zip(members, expected, strict=True):
        assert_equal_states(member, alike)


def test_a_member_whose_loss_is_not_finite_fails_alone(tmp_path):
    expected = alone(several(), tmp_path / "alone")
    members = make_members(several(), tmp_path / "together")
    with torch.no_grad():
        next(members[1].model.parameters()).fill_(torch.inf)
    fit_many(members, num_threads=2)
    assert isinstance(members[1].failure, NonFiniteError)
    assert "in the batch of" in str(members[1].failure)
    assert members[1].history == []
    assert members[1].best_predictions() is None
    for number in (0, 2):
        assert members[number].failure is None
        assert_equal_states(members[number], expected[number])


def test_models_that_begin_alike_share_the_steps_of_a_batch(tmp_path):
    changes = [{}, {"hidden_size": 5}, {"scan": "rows"}, {"pooling": "avg"}, {"standardise": False}]
    members = make_members([live_config(**{**SMALL, **each}) for each in changes], tmp_path)
    assert len(share_steps(member.model for member in members)) == 4
    first, second, third, *_ = (member.model.steps for member in members)
    assert first is second is not third
    batch = next(members[0].train.epoch())
    with first.keeping(batch.maps, batch.lengths):
        kept = first(batch.maps, batch.lengths)
        assert kept is first(batch.maps, batch.lengths)
        assert kept.sequences.packed is first(batch.maps, batch.lengths).sequences.packed
        copy = replace(batch, maps=batch.maps.clone())
        assert first(copy.maps, copy.lengths) is not kept
        assert torch.equal(first(copy.maps, copy.lengths).values, kept.values)
    assert first(batch.maps, batch.lengths) is not kept


def test_the_answers_of_the_best_epoch_are_there_after_a_resume_too(tmp_path):
    configs = several()[:1]
    (member,) = make_members(configs, tmp_path)
    fit_many([member])
    fit, answers = member.result(), member.best_predictions()
    (resumed,) = make_members(configs, tmp_path)
    fit_many([resumed])
    assert resumed.result() == fit
    again = resumed.best_predictions()
    for first, second in zip(answers.outputs, again.outputs, strict=True):
        assert torch.equal(first, second)
