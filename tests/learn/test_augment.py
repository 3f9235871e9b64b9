"""Augmentation of steps, against loops written by hand; and of the targets that go with them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pipeline.learn.models.augment import Augment, Changes, warped_frames
from pipeline.learn.models.steps import ClipSteps
from pipeline.learn.tasks import FrameLabels, Regression
from pipeline.learn.training import fit_many
from pipeline.settings.model import AugmentConfig
from pipeline.settings.training import TrainConfig
from tests.support.configs import live_config
from tests.support.every_training import SMALL, make_member

LENGTHS = torch.tensor([4, 1, 3])


@pytest.fixture
def one_thread_an_operation() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_steps() -> ClipSteps:
    """Three clips of 4, 1 and 3 frames of two steps; padding is 100."""
    values = torch.randn(3, 4, 2, 5, generator=torch.Generator().manual_seed(1))
    for row, length in zip(values, LENGTHS.tolist(), strict=True):
        row[length:] = 100
    return ClipSteps(values, LENGTHS)


def augmented(**options: float) -> tuple[torch.Tensor, torch.Tensor, Changes, torch.Generator]:
    """The steps before and after, what was changed, and a generator with the same numbers."""
    augment = Augment(AugmentConfig(**options)).train()
    augment.mixes = True
    augment.generator = torch.Generator().manual_seed(5)
    steps = make_steps()
    after = augment(steps)
    assert after.lengths is LENGTHS
    torch.testing.assert_close(steps.values, make_steps().values, rtol=0, atol=0)  # others read them, too
    return steps.values, after.values, augment.changes, torch.Generator().manual_seed(5)


def uniform(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.empty(shape).uniform_(generator=generator)


def test_without_options_and_in_evaluation_steps_stay_as_they_are() -> None:
    steps = make_steps()
    assert Augment(AugmentConfig()).train()(steps) is steps
    assert Augment(AugmentConfig(noise=1.0, mixup=0.5)).eval()(steps) is steps


def warped_by_hand(length: int, place: float, shift: float, *, largest: float) -> list[int]:
    last = length - 1
    place *= last
    shown = min(max(place + (2 * shift - 1) * largest * length, 0), last)
    frames = []
    for number in range(length):
        if number <= place:
            frame = number * shown / place if place else 0
        else:
            frame = shown + (number - place) * (last - shown) / (last - place)
        frames.append(round(frame))
    return frames


def test_a_warp_of_time_shows_each_place_a_frame_by_two_even_stretches() -> None:
    generator = torch.Generator().manual_seed(0)
    for largest in (0.1, 0.5, 0.9):
        lengths = torch.randint(1, 12, (40,), generator=generator)
        draws = torch.rand(40, 2, generator=generator, dtype=torch.float64)
        frames = warped_frames(lengths, draws, num_frames=12, largest=largest)
        for row, length, (place, shift) in zip(
            frames.tolist(), lengths.tolist(), draws.tolist(), strict=True
        ):
            assert row[:length] == warped_by_hand(length, place, shift, largest=largest)
            assert row[length:] == list(range(length, 12))
            assert row[:length] == sorted(row[:length])
            assert (row[0], row[length - 1]) == (0, length - 1)


def test_time_warp_takes_whole_frames() -> None:
    before, after, changes, generator = augmented(time_warp=0.8)
    draws = uniform(generator, 3, 2)
    expected = warped_frames(LENGTHS, draws, num_frames=4, largest=0.8)
    assert torch.equal(changes.frames, expected)
    assert expected.tolist()[0] != [0, 1, 2, 3]
    for clip in range(3):
        for place in range(4):
            assert torch.equal(after[clip, place], before[clip, expected[clip, place]])


def test_frame_dropout_replaces_frames_by_the_mean_but_never_all_of_a_clip() -> None:
    before, after, changes, generator = augmented(frame_dropout=0.6)
    assert changes == Changes()
    draws = uniform(generator, 3, 4)
    dropped = 0
    for clip, length in enumerate(LENGTHS.tolist()):
        all_go = all(draws[clip, frame] < 0.6 for frame in range(length))
        for frame in range(length):
            goes = draws[clip, frame] < 0.6 and not all_go
            dropped += int(goes)
            assert torch.equal(after[clip, frame], before[clip, frame] * (not goes))
    assert dropped


def test_mixup_adds_a_share_of_another_clip_and_of_nothing_after_its_end() -> None:
    before, after, changes, generator = augmented(mixup=0.5)
    partners = torch.randperm(3, generator=generator)
    share = 0.5 * uniform(generator).item()
    assert torch.equal(changes.partners, partners)
    assert changes.partner_share.item() == pytest.approx(share)
    for clip, (partner, length) in enumerate(zip(partners.tolist(), LENGTHS.tolist(), strict=True)):
        for frame in range(length):
            other = before[partner, frame] if frame < LENGTHS[partner] else torch.zeros(2, 5)
            torch.testing.assert_close(after[clip, frame], (1 - share) * before[clip, frame] + share * other)


def test_noise_is_gaussian_in_deviations_of_the_standardised_steps() -> None:
    before, after, changes, generator = augmented(noise=0.3)
    assert changes == Changes()
    assert torch.equal(after, before + 0.3 * torch.empty(before.shape).normal_(generator=generator))


def test_the_loss_of_a_mixture_is_the_mixture_of_the_losses(tmp_path: Path) -> None:
    config = live_config(**SMALL, task="regression", augment={"mixup": 0.5})
    member = make_member(config, "recurrent", tmp_path / "state.pt")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Noting(Regression):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            seen.append((outputs.detach(), targets))
            return super().loss(outputs, targets)

    member.task = Noting(**vars(member.task))
    member.begin_epoch()
    member.step(next(member.train.epoch()))
    (outputs, own), (again, others) = seen
    changes = member._augment.changes
    assert torch.equal(outputs, again)
    assert torch.equal(others, own[changes.partners])
    share = changes.partner_share.item()
    expected = sum(
        (1 - share) * (output - mine).square().mean() + share * (output - other).square().mean()
        for output, mine, other in zip(outputs, own, others, strict=True)
    ) / len(own)
    torch.testing.assert_close(member._losses[0], expected)


def test_targets_of_frames_go_where_a_warp_shows_the_frames() -> None:
    frames = torch.tensor([[0, 0, 1, 2], [0, 2, 2, 3]])
    targets = torch.tensor([[5, 6, 7, 8], [1, 2, 3, -100]])
    moved = FrameLabels(("a",)).shown_targets(targets, frames)
    assert moved.tolist() == [[5, 5, 6, 7], [1, 3, 3, -100]]
    assert Regression((0.0,), (1.0,)).shown_targets(targets, frames) is targets
    assert FrameLabels(("a",)).shown_targets(targets, None) is targets


@pytest.mark.usefixtures("one_thread_an_operation")
def test_members_that_augment_equal_each_alone(tmp_path: Path) -> None:
    options = ({"noise": 0.3, "mixup": 0.5}, {}, {"time_warp": 0.5, "frame_dropout": 0.5})
    configs = [live_config(**SMALL, augment=augment) for augment in options]

    def trained(name: str, *, together: bool) -> list[dict[str, torch.Tensor]]:
        (tmp_path / name).mkdir()
        members = [
            make_member(config, "recurrent", tmp_path / name / f"{number}.pt")
            for number, config in enumerate(configs)
        ]
        for member in members:
            member.train, member.val = members[0].train, members[0].val
        for group in [members] if together else [[member] for member in members]:
            fit_many(group, num_threads=2)
        return [member.model.state_dict() for member in members]

    for one, two in zip(trained("alone", together=False), trained("together", together=True), strict=True):
        assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"task": "captioning", "augment": {"mixup": 0.2}},
            "augment.mixup 0.2 does nothing: it needs task class",
        ),
        (
            {"task": "frame_labels", "augment": {"mixup": 0.2}},
            "it needs task classification, multilabel or reg",
        ),
        ({"augment": {"mixup": 0.6}}, "less than or equal to 0.5"),
        ({"augment": {"frame_dropout": 1.0}}, "less than 1"),
        ({"augment": {"noise": -1}}, "greater than or equal to 0"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainConfig.model_validate(values)
