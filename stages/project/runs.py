"""Reads runs: of the workspace, and of experiments and revisions from git and DVC's cache."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from fsspec import AbstractFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.contract import FeatureContract
from pipeline.errors import RunError, few
from pipeline.report.runs import Curve, Run
from pipeline.settings.training import MODELS, TrainConfig
from stages.project.git import run_git

WORKSPACE = "workspace"  # as DVC calls it
ANSWERS = "predictions.parquet"  # of the models of a fold, beside them
_NUM_NEAR = 5  # names that are suggested for an unknown one


def folder_files(folder: Path) -> AbstractFileSystem:
    """The files of a project's folder."""
    return DirFileSystem(str(folder.absolute()), LocalFileSystem())  # fsspec keeps it for the next call


def revision_files(revision: str) -> AbstractFileSystem:
    """The files of an experiment or revision, those that DVC tracks from its cache, else from its remote.

    Raises RunError for one that is unknown, and where there is no project of DVC.
    """
    from dvc.api import DVCFileSystem  # takes a second to import
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        files = DVCFileSystem(".", rev=revision)
        files.ls("", detail=False)  # opens it
    except RevError:
        names = _known_names()
        near = get_close_matches(revision, names, n=_NUM_NEAR, cutoff=0.5)
        known = f"Near: {', '.join(near)}." if near else f"Known: {few(names) or 'none'}."
        raise RunError(
            f"There is no experiment or revision {revision!r}. {known} `dvc exp list --all` has all"
            " experiments, and `dvc exp pull REMOTE NAME` brings one of others."
        ) from None
    except DvcException as error:
        raise RunError(f"DVC can't read {revision!r}: {error}") from error
    return files


def _known_names() -> list[str]:
    """The names of experiments, branches and tags, the newest first."""
    patterns = ("refs/exps", "refs/heads", "refs/tags")
    listed = run_git(Path(), "for-each-ref", "--sort=-creatordate", "--format=%(refname)", *patterns)
    refs = (ref.split("/") for ref in listed.stdout.decode(errors="replace").split())
    # refs/exps/<two digits>/<the rest of its commit>/<name>; others below refs/exps are DVC's own.
    names = ("/".join(parts[4 if parts[1] == "exps" else 2 :]) for parts in refs if parts[2] != "exec")
    return list(dict.fromkeys(filter(None, names)))


def load_run(
    name: str, files: AbstractFileSystem, *, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> Run:
    """The run whose files these are.

    `settings` are the contents of its settings/<stage>.yaml, by stage, if it has no such files. Raises
    RunError when it has not trained, files are missing, or its model was trained with other settings.
    """
    checkpoint = json.loads(read_file(name, files, "checkpoints/recurrent/checkpoint.json"))
    values = settings_of(settings or _read_settings(name, files))
    trained = dotted({"train": checkpoint["config"]})
    if changed := [key for key in trained if values.get(key, trained[key]) != trained[key]]:
        raise RunError(
            f"{name}: the model was trained with another {few(changed)} than the settings say. Run `dvc"
            " repro`."
        )
    metrics = _optional(name, files, "reports/evaluate.json")
    is_evaluated = bool(metrics)  # members of a sweep have an empty report
    return Run(
        name=name,
        settings=values,
        task=checkpoint["config"]["task"],
        contracts=tuple(map(FeatureContract.model_validate, checkpoint["contracts"])),
        inputs=checkpoint["inputs"],
        manifest=Path(values["corpus.manifest"]),
        split=values["evaluate.split"],
        predictions=_table(read_file(name, files, "reports/predictions.parquet")) if is_evaluated else None,
        metrics=metrics,
        summary=read_file(name, files, "reports/evaluate.txt").decode() if is_evaluated else "",
        curves={model: dict(_curves(name, files, model)) for model in MODELS},
        training={model: _optional(name, files, f"reports/{model}.json") for model in MODELS},
        extraction=_optional(name, files, "reports/extract.json"),
    )


def has_folds(folder: Path) -> bool:
    """Whether `stages.folds` made this folder, or one that it is a copy of."""
    return any((path.parent / "recurrent").is_dir() for path in folder.glob(f"*/{ANSWERS}"))


def load_folds(folder: Path) -> Run:
    """The run over folds in a folder that `has_folds`.

    Its settings are those that the models of all folds and seeds have in common.
    """
    folds: dict[str, list[Any]] = {}
    checkpoints = []
    for path in sorted(folder.glob(f"*/{ANSWERS}")):
        checkpoints.append(json.loads((path.parent / "recurrent/checkpoint.json").read_bytes()))
        folds.setdefault(path.parent.name.partition(",")[0], []).append(_table(path.read_bytes()))
    configs = [TrainConfig.model_validate(each["config"]) for each in checkpoints]
    first, *others = (dotted({"train": config.live("recurrent")}) for config in configs)
    return Run(
        name=str(folder),
        settings=dict(item for item in first.items() if all(item in each.items() for each in others)),
        task=configs[0].task,
        contracts=tuple(map(FeatureContract.model_validate, checkpoints[0]["contracts"])),
        inputs={},  # each fold has a manifest of its own
        manifest=None,
        split="test",
        predictions=None,
        folds=folds,
    )


def read_file(name: str, files: AbstractFileSystem, path: str) -> bytes:
    """A file of the run `name`. Raises RunError, with the way to get it, when it is missing."""
    try:
        return bytes(files.cat_file(path))
    except FileNotFoundError:
        pass
    except Exception as error:
        from dvc_data.index import DataIndexDirError  # takes long to import

        if not isinstance(error, DataIndexDirError):  # DVC's cache lacks the list of a folder's files
            raise
    if name == WORKSPACE:
        raise RunError(f"{name}: there is no {path}. `dvc repro` makes it, `dvc pull` brings that of others.")
    if _is_recorded(files, path):
        raise RunError(
            f"{name}: {path} is not in DVC's cache. Fetch it: `dvc exp pull REMOTE {name}` if it is an"
            " experiment of others, `git fetch` and `dvc fetch --all-commits` otherwise."
        )
    raise RunError(
        f"{name}: there is no {path}. It has no finished run, or one of another version of framecache."
    )


def _is_recorded(files: AbstractFileSystem, path: str) -> bool:
    """Whether dvc.lock has this file, or a folder that it is in."""
    if not files.exists("dvc.lock"):
        return False
    stages = yaml.safe_load(files.cat_file("dvc.lock"))["stages"].values()
    outs = {out["path"] for stage in stages for out in stage.get("outs", ())}
    return any(str(parent) in outs for parent in (Path(path), *Path(path).parents))


def _optional(name: str, files: AbstractFileSystem, path: str) -> dict[str, Any]:
    """The content of a JSON file; nothing where the run has none."""
    if not files.exists(path):
        return {}
    content: dict[str, Any] = json.loads(read_file(name, files, path))
    return content


def _table(data: bytes) -> Any:
    return pq.read_table(io.BytesIO(data))


def _read_settings(name: str, files: AbstractFileSystem) -> dict[str, Any]:
    """The content of each settings' file, by stage."""
    return {
        stage: yaml.safe_load(read_file(name, files, f"settings/{stage}.yaml"))
        for stage in ("weights", "extract", "recurrent", "evaluate")
    }


def settings_of(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """`Run.settings`, from the settings of each stage."""
    sections = {
        "corpus": {"manifest": settings["extract"]["manifest"]},
        "weights": settings["weights"]["weights"],
        "extract": settings["extract"]["extract"],
        "train": settings["recurrent"]["train"],
        "evaluate": settings["evaluate"]["evaluate"],
        "code": {stage: settings[stage]["code"] for stage in ("recurrent", "evaluate")},
    }
    return dotted(sections)


def dotted(sections: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested sections, by dotted key."""
    return dict(_leaves(sections))


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _curves(name: str, files: AbstractFileSystem, model: str) -> Iterator[tuple[str, Curve]]:
    """Each metric's curve, by its name."""
    folder = f"dvclive/train/{model}/curves"
    for path in sorted(files.ls(folder, detail=False)) if files.exists(folder) else ():
        rows = list(csv.DictReader(io.StringIO(read_file(name, files, path).decode())))
        train, val = (tuple(float(row[split] or math.nan) for row in rows) for split in ("train", "val"))
        yield Path(path).stem, Curve(train, val)
