"""All settings -> those that matter to each stage, and what is wrong with them together."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline.contract import REVISION
from pipeline.errors import ConfigError, few
from pipeline.manifest import Manifest, clips_digest
from pipeline.report import TEMPLATES
from pipeline.settings.networks import ARCHS, check_taps, is_own
from pipeline.settings.tasks import TASKS
from pipeline.settings.training import MODELS, TrainConfig
from pipeline.settings.unused import explain_unused
from pipeline.settings.weights import WeightsConfig, source_file
from pipeline.store.view import INDEX_NAME, stream_folder
from pipeline.system.code import code_digest
from pipeline.system.files import combined_digest, file_digest, write_atomically
from pipeline.system.own_code import OwnCode
from stages.params import PARAMS, Params
from stages.places import CORPUS, FEATURES, SETTINGS, WEIGHTS
from stages.project.visible import imported_features
from stages.yaml_files import read_mapping

_HEADER = "# Written by `python -m stages.settings`: change params.yaml instead.\n"


def resolved(
    params: Params,
    *,
    digest: Callable[[str], str] = code_digest,
    clips: Callable[[str], str] = clips_digest,
) -> dict[str, dict[str, Any]]:
    """The content of each settings/<stage>.yaml, by the stage's name: only what can change its result.

    Training and evaluation depend on the code, so their files have the `digest` of their modules. Features
    depend on the contract's revision instead. Training does not depend on the manifest's file, but on the
    digest `clips` of it, where columns of the user's own do not count. No stage depends on
    settings/corpus.yaml.

    Raises ManifestError when the manifest is wrong.
    """
    manifest = params.corpus.manifest
    extract = {
        "revision": REVISION,
        "manifest": manifest,
        "weights": params.weights.arch,
        "extract": params.extract.model_dump(mode="json"),
        **_own_settings(params.weights),
    }
    imported = {"manifest": manifest, "extract": {"imported": params.extract.imported}}
    train: dict[str, dict[str, Any]] = {
        name: {
            "code": digest("stages.train"),
            "manifest": manifest,
            "clips": clips(manifest),
            "weights": params.weights.arch,
            "train": params.train.live(name),
        }
        for name in MODELS
    }
    evaluate = {
        "code": digest("stages.evaluate"),
        "manifest": manifest,
        "tap": params.train.tap,
        "evaluate": params.evaluate.live(params.train),
    }
    return {
        CORPUS.stem: {"root": params.corpus.root},
        "weights": _weights_settings(params.weights),
        "extract": imported if params.extract.imported else extract,
        "streams": _stream_settings(params.train),
        **train,
        "evaluate": evaluate,
        "report": {
            "code": digest("stages.report"),
            "templates": _templates_digest(),
            "manifest": manifest,
            "tap": params.train.tap,
        },
    }


def _stream_settings(train: TrainConfig) -> dict[str, Any]:
    """Which features training reads beside those of its tap, and the digest of those of other networks."""
    folders = {
        stream.tap: imported_features(str(stream_folder(FEATURES / train.tap, stream.tap)))
        for stream in train.streams
    }
    indexes = {name: folder / INDEX_NAME for name, folder in folders.items() if "/" in name}
    digests = {name: file_digest(path).hex() for name, path in indexes.items() if path.exists()}
    return {"tap": train.tap, "streams": list(folders), "digests": digests}


def _templates_digest() -> str:
    """Of the files that the report's page is made of."""
    files = (path for path in TEMPLATES.iterdir() if path.is_file())
    return combined_digest([file_digest(path) for path in sorted(files)]).hex()


def _own_settings(config: WeightsConfig) -> dict[str, Any]:
    """Of a network of one's own: what builds it, and the version of that code, so that an edit is seen."""
    if not is_own(config.arch):
        return {}
    own = OwnCode(config.arch, config.arguments, Path(config.code) if config.code else None)
    kept = config.model_dump(mode="json", include={"arch", "arguments", "code"})
    return {"own": kept, "code": own.version()}


def _weights_settings(config: WeightsConfig) -> dict[str, Any]:
    """The settings, and the digest of a source that is a file: as it is here, or else as recorded before.

    Experiments in a folder of their own find the record in the project, which DVC_ROOT names.
    """
    values = {"weights": config.model_dump(mode="json"), **_own_settings(config)}
    path = source_file(config.source)
    if path is None:
        return values
    if path.is_file():
        return {**values, "digest": file_digest(path).hex()}
    for folder in (Path(), Path(os.environ.get("DVC_ROOT", "."))):
        record = folder / WEIGHTS
        recorded = read_mapping(record) if record.exists() else {}
        if recorded.get("weights") == values["weights"]:
            return recorded
    return values


def write_settings(settings: Mapping[str, Mapping[str, Any]], *, folder: Path = Path()) -> None:
    """Write settings/<stage>.yaml of each stage in the project `folder`."""
    for stage, values in settings.items():
        text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
        write_atomically(folder / SETTINGS / f"{stage}.yaml", f"{_HEADER}{text}".encode())


def check_together(params: Params, manifest: Manifest) -> None:
    """Raise ConfigError with all that is wrong in settings that are right one by one."""
    problems = [*_tap_problems(params), *_stream_problems(params), *_target_problems(params, manifest)]
    if unused := explain_unused(params.evaluate, params.evaluate.unused(params.train)):
        problems.append(f"evaluate: {unused}.")
    if problems:
        raise ConfigError("\n".join(f"{PARAMS}: {problem}" for problem in problems))


def _tap_problems(params: Params) -> Iterator[str]:
    if params.extract.imported:
        yield from _imported_problems(params.extract.imported, params.train)
        return
    arch, train = params.weights.arch, params.train
    for key, tap in [*(("extract.taps", tap) for tap in params.extract.taps), ("train.tail", train.tail)]:
        try:
            check_taps(arch, [tap] if tap else params.extract.taps)
        except ConfigError as error:
            yield f"{key}: {error}"
    if train.tap not in params.extract.taps:
        yield (
            f"train.tap: {train.tap!r} is not among extract.taps ({', '.join(params.extract.taps)}). Set it"
            " to one of them, or add it there."
        )
    elif train.tail and is_own(arch):
        yield f"train.tail: layers of {arch}, a network of your own, can't be trained. Set it to null."
    elif train.tail and arch in ARCHS and not _may_follow(train.tap, train.tail, ARCHS[arch].taps):
        yield f"train.tail: {train.tail!r} is no tap after train.tap, {train.tap!r}."
    for section, views in (("train", train.views), ("evaluate", params.evaluate.views)):
        for view in views:
            if view not in params.extract.views:
                yield (
                    f"{section}.views: {view.name!r} is not among extract.views"
                    f" ({', '.join(each.name for each in params.extract.views)}). Add it there."
                )
    if train.tail and params.extract.pooling != "none":
        yield (
            f"train.tail: {train.tail!r} reads whole maps, and extract.pooling is {params.extract.pooling!r}."
            " Set it to none, or train without a tail."
        )


def _imported_problems(folder: str, train: TrainConfig) -> Iterator[str]:
    """What does not fit imported features; their names are known where they are on this machine."""
    names = sorted(index.parent.name for index in imported_features(folder).glob(f"*/{INDEX_NAME}"))
    if names and train.tap not in names:
        yield f"train.tap: {train.tap!r} is not among the imported features: {', '.join(names)}. Set it."
    if train.tail:
        yield f"train.tail: {train.tail!r} is part of a network, and imported features have none."


def _stream_problems(params: Params) -> Iterator[str]:
    """Streams of this network that are not extracted, and those of others whose features are not there."""
    taps, train = params.extract.taps, params.train
    for stream in train.streams:
        folder = stream_folder(FEATURES / train.tap, stream.tap)
        if "/" in stream.tap:
            if not imported_features(str(folder)).exists():
                yield f"train.streams: there are no features of {stream.tap!r} in {folder}."
        elif stream.tap not in taps and not params.extract.imported:
            known = ", ".join(taps)
            yield f"train.streams: {stream.tap!r} is not among extract.taps ({known}). Add it there."


def _may_follow(tap: str, tail: str, suggested: Sequence[str]) -> bool:
    """Whether a tail may come after a tap: of taps that are not suggested, the network knows."""
    if tap in suggested and tail in suggested:
        return suggested.index(tail) > suggested.index(tap)
    return tail != tap


def _target_problems(params: Params, manifest: Manifest) -> Iterator[str]:
    """The clips of the splits in use that lack what the task asks for, or have too much of it."""
    task, facts = params.train.task, TASKS[params.train.task]
    used = pc.is_in(manifest.column("split"), pa.array(["train", "val", params.evaluate.split]))
    lacking = pc.and_(used, pc.is_null(manifest.column(facts.column)))
    clips = manifest.column("clip_id").filter(lacking).to_pylist()
    if clips and not (facts.is_multilabel and len(clips) < pc.sum(used).as_py()):  # of many, some have none
        yield (
            f"train.task: {task!r} needs the column {facts.column!r} of the manifest, and"
            f" {len(clips)} clips have nothing there: {few(clips)}."
        )
    if facts.has_segments and (background := set(params.train.segments.background)):
        labels = {each.label for clip in manifest.clips(split="train") for each in clip.frame_labels}
        if unknown := background - labels:
            known = ", ".join(sorted(labels))
            yield f"train.segments.background: no train clip has {few(sorted(unknown))}. Labels: {known}."
    if facts.has_classes and not facts.is_multilabel:
        several = pc.and_(used, pa.array(manifest.has_several(facts.column)))
        clips = manifest.column("clip_id").filter(several).to_pylist()
        if clips:
            (other,) = (name for name, of in TASKS.items() if of.is_multilabel and of.column == facts.column)
            yield (
                f"train.task: {task!r} takes one label a {'frame' if facts.per_frame else 'clip'}, and"
                f" {len(clips)} clips have several in the column {facts.column!r}: {few(clips)}. Set it to"
                f" {other}, or correct the manifest."
            )
