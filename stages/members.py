"""A sweep -> its members: what each one is asked for, and all that is wrong, before anything trains."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from pydantic import ValidationError

from pipeline.contract import CENTER
from pipeline.errors import ConfigError, PipelineError
from pipeline.manifest import Manifest, read_manifest
from pipeline.settings.sweep import SweepConfig, sweep_points
from pipeline.settings.tasks import TASKS
from pipeline.settings.training import AnyTrainConfig, TrainConfig
from pipeline.settings.unused import without
from pipeline.store import view_folder
from stages.overrides import overlaid
from stages.params import PARAMS, Params, params_of, read_document, read_params
from stages.places import FEATURES
from stages.project.visible import visible_manifest
from stages.resolution import check_together

SEED = "train.seed"
_MAX_NAME = 100  # characters


@dataclass(frozen=True)
class SweepMember:
    """One model of a sweep, as params.yaml would ask for it."""

    name: str  # of its values, such as hidden_size=64,seed=0; can be that of an experiment
    values: Mapping[str, Any]  # of the sweep's keys, without those that do nothing here
    document: Mapping[str, Any]  # its params.yaml
    params: Params  # the same with all defaults

    @property
    def manifest(self) -> Path:
        """The manifest of its clips."""
        return Path(self.params.corpus.manifest)

    @property
    def config(self) -> TrainConfig:
        """How it is trained."""
        return self.params.train

    @property
    def setting(self) -> str:
        """The same for members that differ in the seed alone."""
        return json.dumps({key: value for key, value in self.values.items() if key != SEED})


def sweep_members(sweep: SweepConfig, *, path: Path) -> list[SweepMember]:
    """The members of the sweep in the file `path`, over params.yaml; those with equal settings are one.

    A key that does nothing under a member's other settings is left out of this member, whether it comes from
    the sweep or from params.yaml. Raises ConfigError with all that is wrong.
    """
    read_params()  # what is wrong without a sweep is said first
    base, points = read_document(), sweep_points(sweep)
    found: dict[str, SweepMember] = {}
    problems: dict[str, None] = {}  # each once
    for point in points:
        try:
            member = _member(base, point, path=path)
            check_together(member.params, _read_manifest(member.manifest))
            found.setdefault(_identity(member.params), member)
        except PipelineError as error:
            problems |= dict.fromkeys(str(error).splitlines())
    members = _with_names(found.values())
    if not problems:
        problems |= dict.fromkeys(_idle_keys(points, members, path=path))
    if members:
        problems |= dict.fromkeys(_problems_together(sweep, members, path=path))
    if problems:
        raise ConfigError("\n".join(problems))
    return members


def fold_member(manifest: Path, *, fold: str, seed: int) -> SweepMember:
    """The model of params.yaml with this seed, on the splits of a fold, which are in `manifest`.

    Raises ConfigError with all that is wrong.
    """
    changes = {"corpus": {"manifest": str(manifest)}, "train": {"seed": seed}}
    document = overlaid(read_document(), changes)
    params = params_of(document, path=PARAMS)
    check_together(params, read_manifest(manifest))
    return SweepMember(f"fold {fold}, seed {seed}", {"fold": fold, SEED: seed}, document, params)


def settings_of(members: Iterable[SweepMember]) -> list[list[str]]:
    """The names of the members of each setting, which differ in the seed alone."""
    names: dict[str, list[str]] = {}
    for member in members:
        names.setdefault(member.setting, []).append(member.name)
    return list(names.values())


def _member(base: Mapping[str, Any], point: Mapping[str, Any], *, path: Path) -> SweepMember:
    document = reduce(overlaid, (_nested(key, value) for key, value in point.items()), dict(base))
    unused: Mapping[str, str] = {}
    try:
        unused = AnyTrainConfig.model_validate(document.get("train", {})).unused("recurrent")
    except ValidationError:
        pass  # `params_of` says what is wrong
    else:
        document["train"] = without(document["train"], unused)
    params = params_of(document, path=path)
    settings = params.model_dump(mode="json")
    settings["train"] = without(settings["train"], unused)
    values = {key: value for key in point if (value := _at(settings, key)) is not _ABSENT}
    typed = reduce(overlaid, (_nested(key, value) for key, value in values.items()), document)
    return SweepMember("", values, typed, params)


_ABSENT = object()


def _nested(key: str, value: Any) -> dict[str, Any]:
    first, _, rest = key.partition(".")
    return {first: _nested(rest, value) if rest else value}


def _at(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
    return value


def _identity(params: Params) -> str:
    return json.dumps([params.corpus.manifest, params.train.live("recurrent")], sort_keys=True)


@cache
def _read_manifest(path: Path) -> Manifest:
    return read_manifest(visible_manifest(str(path)))


def _with_names(members: Iterable[SweepMember]) -> list[SweepMember]:
    """The members with names that differ."""
    named: dict[str, SweepMember] = {}
    for member in members:
        name = ",".join(f"{key.partition('.')[2]}={_text(value)}" for key, value in member.values.items())
        if name in named or len(name) > _MAX_NAME:
            digest = hashlib.sha256(_identity(member.params).encode()).hexdigest()[:8]
            name = f"{name[: _MAX_NAME - 9]},{digest}"
        named[name] = SweepMember(name, member.values, member.document, member.params)
    return list(named.values())


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"[^\w.=,+-]+|\.{2,}", "-", text, flags=re.ASCII).strip("-.")


def _idle_keys(
    points: Sequence[Mapping[str, Any]], members: Sequence[SweepMember], *, path: Path
) -> Iterator[str]:
    for key in dict.fromkeys(key for point in points for key in point):
        if all(key not in member.values for member in members):
            unused = members[0].config.unused("recurrent")
            parents = accumulate(key.split(".")[1:], "{}.{}".format)
            reason = next(unused[part] for part in parents if part in unused)
            yield f"{path}: {key} does nothing in any member: {reason}."


def _problems_together(sweep: SweepConfig, members: Sequence[SweepMember], *, path: Path) -> Iterator[str]:
    asked = {(member.config.task, member.config.resolved_monitor) for member in members}
    if len(asked) > 1:
        pairs = ", ".join(" with ".join(pair) for pair in sorted(asked))
        yield f"{path}: no metric compares members of different tasks or monitors: {pairs}."
    first, *others = dict.fromkeys(member.manifest for member in members)
    for other in others:
        if _val_clips(first) != _val_clips(other):
            yield f"{path}: {first} and {other} have different val clips, so their members can't be compared."
    shown = {(member.config.tap, view) for member in members for view in (CENTER, *member.config.views)}
    for folder in sorted({view_folder(FEATURES / tap, view) for tap, view in shown}):
        if not folder.is_dir():
            yield f"{folder} is missing. Run `dvc repro extract` to make it, or `dvc pull`."
    if keys := _keys_of_loss(members):
        named = ", ".join(keys)
        if sweep.halving:
            yield f"{path}: halving compares val losses, whose scale depends on {named}. Leave halving out."
        if members[0].config.resolved_monitor == "loss":
            yield f"{path}: train.monitor loss has a scale that depends on {named}. Choose another monitor."
    fewest = min(member.config.epochs for member in members)
    if sweep.halving and sweep.halving.rungs[-1] >= fewest:
        yield f"{path}: halving.rungs: {sweep.halving.rungs[-1]} is not below train.epochs, {fewest}."


def _keys_of_loss(members: Sequence[SweepMember]) -> list[str]:
    """The keys that differ among members and change the scale of the val loss."""
    keys = ["train.class_weights", "train.effective_number_beta", "train.focal_gamma"]
    if any(member.config.class_weights for member in members):  # which come from the train clips
        keys.append("corpus.manifest")
    if not TASKS[members[0].config.task].takes_questions:  # whose loss is about answers
        keys.append("train.words.min_count")
    settings = [member.params.model_dump(mode="json") for member in members]
    return [key for key in keys if len({_at(each, key) for each in settings}) > 1]


def _val_clips(path: Path) -> set[str]:
    manifest = _read_manifest(path)
    return set(manifest.column("clip_id").filter(pc.equal(manifest.column("split"), "val")).to_pylist())
