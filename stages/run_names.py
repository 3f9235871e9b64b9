"""Names of runs -> the runs, with the models that can answer again."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, cast

from fsspec import AbstractFileSystem

from pipeline.errors import RunError
from pipeline.learn.checkpoint import Checkpoint, load_checkpoint
from pipeline.report.runs import Run
from pipeline.settings.sweep import SweepConfig
from pipeline.settings.training import ModelName
from stages.machine import read_machine
from stages.members import sweep_members
from stages.project.runs import (
    WORKSPACE,
    dotted,
    folder_files,
    has_folds,
    load_folds,
    load_run,
    read_file,
    revision_files,
)
from stages.resolution import resolved
from stages.sweep_training import Trainings
from stages.yaml_files import checked, read_mapping

_MODEL = Path("checkpoints/recurrent")
_FILES = ("checkpoint.json", "model.safetensors")  # of a checkpoint


@dataclass(frozen=True)
class NamedRun:
    """A run, and its trained model."""

    run: Run
    load: Callable[[], Checkpoint]


def find_runs(names: Sequence[str]) -> list[NamedRun]:
    """The runs of these names; the file of a sweep stands for all of its members that are trained.

    Raises RunError for a name that stands for nothing, and for a run that lacks files.
    """
    return [run for name in names for run in _find(name)]


def _find(name: str) -> Iterator[NamedRun]:
    path = Path(name)
    if name == WORKSPACE:
        yield NamedRun(load_run(name, folder_files(Path())), partial(load_checkpoint, _MODEL))
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        yield from _members(path)
    elif path.name in _FILES and path.is_file():
        yield _of_checkpoint(path.parent)
    elif (path / _FILES[0]).is_file():
        yield _of_checkpoint(path)
    elif has_folds(path):
        yield NamedRun(load_folds(path), partial(_refuse_folds, path))
    else:
        try:
            files = revision_files(name)
        except RunError as error:
            if path.exists():
                raise RunError(f"{name} is no checkpoint: {_FILES[0]} is not in it. {error}") from None
            raise
        yield NamedRun(load_run(name, files), partial(_load_checkpoint, name, files))


def _members(path: Path) -> Iterator[NamedRun]:
    """The members of a sweep that are trained to their end."""
    sweep = checked(read_mapping(path), SweepConfig, path=path)
    members = {member.name: member for member in sweep_members(sweep, path=path)}
    trainings = Trainings(members, read_machine())
    trained = [name for name in members if trainings.is_done(name)]
    if not trained:
        raise RunError(f"No member of {path} is trained: run `python -m stages.sweep {path}` first.")
    for name in trained:
        folder = trainings.folder(name)
        settings = resolved(members[name].params, clips=lambda _: "")
        run = load_run(name, folder_files(folder), settings=settings)
        yield NamedRun(run, partial(load_checkpoint, folder / _MODEL))


def _of_checkpoint(folder: Path) -> NamedRun:
    """The run of a checkpoint alone: of its settings it has those of the training."""
    checkpoint = load_checkpoint(folder)
    run = Run(
        name=str(folder),
        settings=dotted({"train": checkpoint.config.live(cast(ModelName, checkpoint.network))}),
        task=checkpoint.config.task,
        contracts=checkpoint.contracts,
        inputs=checkpoint.inputs,
        manifest=None,
        split="",
        predictions=None,
    )
    return NamedRun(run, lambda: checkpoint)


def _refuse_folds(path: Path) -> NoReturn:
    raise RunError(
        f"{path}: models of folds are compared on the test clips of their folds, and on no others."
    )


def _load_checkpoint(name: str, files: AbstractFileSystem) -> Checkpoint:
    with tempfile.TemporaryDirectory() as folder:
        for file in _FILES:
            Path(folder, file).write_bytes(read_file(name, files, str(_MODEL / file)))
        return load_checkpoint(Path(folder))
