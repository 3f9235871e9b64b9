"""The plan of a sweep: what is read how often, about how long it takes, and what there is time for."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.errors import listed
from pipeline.learn.sweeps import num_kept
from pipeline.manifest import read_manifest
from pipeline.settings.sweep import SweepConfig
from pipeline.settings.training import LoaderConfig
from pipeline.store import open_view
from stages.console import print_table
from stages.members import SweepMember, settings_of
from stages.sweep_training import Trainings


def num_epochs(members: Collection[SweepMember], sweep: SweepConfig) -> int:
    """How many epochs are trained, of all members together, if none of them ends early."""
    epochs = {member.name: member.config.epochs for member in members}
    longest = sorted((epochs[names[0]] for names in settings_of(members)), reverse=True)  # of each setting
    total, done, going = 0, 0, len(longest)
    for rung in sweep.halving.rungs if sweep.halving else ():
        total, done = total + going * (rung - done), rung
        going = num_kept(going, sweep.halving.keep) if sweep.halving else going
    total += sum(longest[:going]) - going * done
    return total * len(members) // len(longest)


def epoch_seconds(trainings: Trainings, names: Sequence[str]) -> float:
    """The time of an epoch of one of these members, which are not done; the mean, by their first seconds."""
    return trainings.seconds(names) / sum(trainings.members[name].config.epochs for name in names)


def settings_in_time(
    trainings: Trainings, settings: Sequence[list[str]], sweep: SweepConfig, *, num_possible: float
) -> list[list[str]]:
    """The settings that are done, and the first of the others: at most `num_possible` epochs are trained."""
    done = [setting for setting in settings if all(map(trainings.is_done, setting))]
    left = [setting for setting in settings if setting not in done]

    def num_trained(num_settings: int) -> int:
        names = [name for setting in left[:num_settings] for name in setting]
        return num_epochs([trainings.members[name] for name in names], sweep)

    fitting = (number for number in range(len(left), 0, -1) if num_trained(number) <= num_possible)
    return done + left[: next(fitting, 0)]


def print_plan(trainings: Trainings, sweep: SweepConfig) -> None:
    """Print a row for each group of members that share their batches, and the time."""
    members = trainings.members
    done = [name for name in members if trainings.is_done(name)]
    left = [name for name in members if name not in done]
    groups: dict[tuple[object, ...], list[SweepMember]] = {}
    for member in members.values():
        groups.setdefault(_batches(member), []).append(member)
    print_table([_row(trainings, group) for group in groups.values()])
    print(f"\n{len(members)} members of {len(settings_of(members.values()))} settings.")
    if done:
        print(f"{len(done)} of them are trained, and are not trained again:", listed(done), sep="\n")
    if left:
        epochs, seconds = num_epochs([members[name] for name in left], sweep), epoch_seconds(trainings, left)
        print(f"At most {epochs} epochs, {seconds:.2f} s each: {_time(epochs * seconds)}.")


def _batches(member: SweepMember) -> tuple[object, ...]:
    """What makes a member's batches: equal for members that share them."""
    config = member.config
    return (
        member.manifest,
        config.tap,
        config.seed,
        *(getattr(config, key) for key in LoaderConfig.model_fields),
    )


def _row(trainings: Trainings, group: list[SweepMember]) -> dict[str, str]:
    first = group[0]
    features = trainings.features(first.name)
    size_bytes = _size_bytes(features, first.manifest)
    is_resident = size_bytes <= trainings.machine.resident_mb << 20
    return {
        "features": str(features),
        "clips": str(first.manifest),
        "MB": str(size_bytes >> 20),
        "are read": "once" if is_resident else "once an epoch",
        "members": str(len(group)),
        "the first": first.name,
    }


def _size_bytes(features: Path, manifest: Path) -> int:
    clips = [clip.clip_id for clip in read_manifest(manifest).clips() if clip.split in ("train", "val")]
    with open_view(features) as view:
        num_frames = sum(view.num_frames(clip) for clip in clips if clip in view)
        return num_frames * math.prod(view.map_shape) * view.dtype.itemsize


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
