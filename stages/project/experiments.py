"""Experiments of DVC for models that were trained together: what `dvc exp run` of each would have left."""

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import ExperimentError, StoreError
from pipeline.manifest import read_manifest
from pipeline.system.code import code_digest
from pipeline.system.files import file_lock, make_folder
from stages.params import PARAMS, read_params
from stages.places import SETTINGS
from stages.project.git import run_git
from stages.resolution import resolved, write_settings
from stages.streams import write_streams

log = logging.getLogger(__name__)

_ROOM = Path(".dvc/tmp/experiments")
_COPIED = [".dvc/config", ".dvc/config.local", ".dvcignore", "dvc.yaml", "dvc.lock", str(PARAMS)]


class Experiments:
    """Finds models that were trained before, and makes experiments of models that are trained.

    `dvc exp run` and `dvc exp save` work on the whole workspace, for seconds each time. Here a folder stands
    for it, the room: a project of DVC without git, which shares its cache. It has what the stages of one
    experiment read and write. DVC commits their outs there, so that its run cache has them, and git commits
    what `dvc exp run` commits: params.yaml, settings and dvc.lock over the workspace as it was at the start.

    A model's `folder` has its outs where the stages write them in a project: checkpoints/recurrent, ...
    Its `params` are the whole content of its params.yaml. Stages have the names that DVC gives them, such as
    train@recurrent. While DVC works, the room is the current folder of this process.
    """

    def __init__(self, room: Path) -> None:
        self._room = room
        self._project = Path(os.environ.get("DVC_ROOT", ".")).absolute()  # a temporary run has its own git
        self._digest = functools.cache(code_digest)
        for name in filter(os.path.exists, _COPIED):
            make_folder((room / name).parent)
            shutil.copyfile(name, room / name)
        self._head = _git(Path(), "rev-parse", "HEAD")
        self._git_dir = _git(Path(), "rev-parse", "--absolute-git-dir")
        self._index = str(room / "index")
        shutil.copyfile(_git(Path(), "rev-parse", "--git-path", "index"), self._index)
        _git(Path(), "add", "--update", GIT_INDEX_FILE=self._index)
        self._tree = _git(Path(), "write-tree", GIT_INDEX_FILE=self._index)
        params = read_params()
        self._manifest = Path(params.corpus.manifest)
        settings = resolved(params, digest=self._digest)
        if "DVC_STAGE" not in os.environ:  # else the stage `settings` has just run
            write_settings(settings)
        with _project(Path()) as repo:
            cache = repo.cache.local_cache_dir
            if stale := repo.status(targets=["weights", "extract"]):
                raise ExperimentError(
                    "No experiment can have these features: they are not those that params.yaml asks for"
                    f" ({', '.join(stale)} would run again). Run `dvc repro extract` first."
                )
        _configure(room / ".dvc", cache=cache)
        with contextlib.chdir(room), _project(room) as repo:
            repo.checkout(targets=["settings", "weights", "extract", "streams"], force=True)
            for stage in _load(repo, ["evaluate", "report"]):
                _empty_outs(stage)
        self._lock = (room / "dvc.lock").read_bytes()

    def check_manifest(self, manifest: Path) -> None:
        """Raise ExperimentError if `extract` would make other features of a manifest's clips.

        Those that are there are of the manifest of params.yaml.
        """
        if manifest != self._manifest and _extracted(manifest) != _extracted(self._manifest):
            raise ExperimentError(
                f"No experiment can have {manifest}: the features are those of {self._manifest}, which has"
                " other clips, sources or times. Splits and targets may differ."
            )

    def restore(self, params: Mapping[str, Any], folder: Path, *, stages: Sequence[str]) -> bool:
        """Put a model's outs into its folder if DVC has them of an earlier run; whether it has.

        An earlier run is one with the same settings, features, manifest and code, by whatever command.
        """
        from dvc.stage.cache import RunCacheNotFoundError

        folder = folder.absolute()
        with self._entered(params) as repo:
            found = _load(repo, stages)
            try:
                for stage in found:
                    for path in _outs(stage):
                        _remove(path)
                    repo.stage_cache.restore(stage)
            except RunCacheNotFoundError:
                return False
            _copy_outs(found, Path(), folder)
        return True

    def revision(self, name: str) -> str:
        """The revision of the experiment of this name; empty if there is none."""
        done = run_git(self._project, "rev-parse", "--verify", "--quiet", self._ref(name), check=False)
        return done.stdout.decode().strip()

    def save(self, name: str, params: Mapping[str, Any], folder: Path, *, stages: Sequence[str]) -> str:
        """Make an experiment of a model whose `stages` have their outs in its folder, or make it again.

        Returns its revision.

        What `evaluate` writes is empty where it is not among the stages: otherwise, the numbers of the
        workspace's model would be shown as those of this one. With it, both models are among them.
        """
        folder = folder.absolute()
        with self._entered(params) as repo:
            settings, extract, *others = _load(repo, ["settings", "extract", "streams", *stages])
            _copy_outs(others[1:], folder, Path())
            extract.save_deps()  # of a manifest with the same clips it would make the same features
            repo.stage_cache.save(extract)
            extract.dump(update_pipeline=False)
            _record(settings, *others)
            return self._commit(name)

    @contextlib.contextmanager
    def _entered(self, params: Mapping[str, Any]) -> Iterator[Any]:
        """The room with these parameters and their settings, which becomes the current folder."""
        from dvc.utils.serialize import modify_yaml

        (self._room / "dvc.lock").write_bytes(self._lock)
        with modify_yaml(self._room / PARAMS) as document:
            _become(document, params)
        asked = read_params(self._room / PARAMS)
        settings = resolved(asked, digest=self._digest)
        write_settings(settings, folder=self._room)
        write_streams(settings["streams"], folder=self._room)
        manifest = Path(asked.corpus.manifest)
        if not manifest.is_absolute():
            make_folder((self._room / manifest).parent)
            shutil.copyfile(manifest, self._room / manifest)
        with contextlib.chdir(self._room), _project(self._room) as repo:
            yield repo

    def _commit(self, name: str) -> str:
        git = functools.partial(
            _git,
            self._room,
            GIT_DIR=self._git_dir,
            GIT_WORK_TREE=str(self._room),
            GIT_INDEX_FILE=self._index,
        )
        git("read-tree", self._tree)
        git("add", "--force", "--", str(PARAMS), "dvc.lock", str(SETTINGS))
        commit = git("commit-tree", git("write-tree"), "-p", self._head, "-m", f"Experiment {name}")
        git("push", "--quiet", "--no-verify", "--force", str(self._project), f"{commit}:{self._ref(name)}")
        return commit

    def _ref(self, name: str) -> str:
        from dvc.repo.experiments.refs import ExpRefInfo

        return str(ExpRefInfo(self._head, name))


@contextlib.contextmanager
def open_experiments() -> Iterator[Experiments]:
    """The experiments of the project in the current folder, for one process at a time.

    Raises ExperimentError when DVC or git fails, and when the features are not those that params.yaml asks
    for.
    """
    room = _ROOM.absolute()
    with file_lock(room.with_suffix(".lock"), on_wait=_say_waiting):
        _remove(room)  # of a process that was killed
        try:
            yield Experiments(room)
        finally:
            _remove(room)  # its links would keep what `dvc gc` deletes


def _extracted(manifest: Path) -> dict[str, tuple[object, ...]]:
    """What `extract` reads of each clip, by its id."""
    return {
        clip.clip_id: (clip.sources, clip.start_seconds, clip.end_seconds, clip.image_fps)
        for clip in read_manifest(manifest)
    }


def _say_waiting(holder: str) -> None:
    log.info("Waiting for another sweep of this project: %s.", holder)


@contextlib.contextmanager
def _project(folder: Path) -> Iterator[Any]:
    """The project of DVC in a folder, which is locked. Raises ExperimentError where DVC fails meanwhile."""
    from dvc.exceptions import DvcException
    from dvc.logger import set_loggers_level
    from dvc.repo import Repo, lock_repo  # takes a second to import

    try:
        with set_loggers_level(logging.ERROR), Repo(str(folder)) as repo, lock_repo(repo):
            yield repo
    except DvcException as error:
        raise ExperimentError(f"DVC in {folder.absolute()}: {error}") from error


def _git(folder: Path, *arguments: str, **environment: str) -> str:
    try:
        return run_git(folder, *arguments, environment=environment).stdout.decode().strip()
    except StoreError as error:
        raise ExperimentError(str(error)) from None


def _configure(folder: Path, *, cache: str) -> None:
    """Settings of DVC for a project without git and with another's cache."""
    from dvc.config import Config

    with Config(str(folder)).edit("local") as local:
        local["core"] = {**local.get("core", {}), "no_scm": True}
        local["cache"] = {**local.get("cache", {}), "dir": cache}


def _become(document: MutableMapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Give a YAML document other content. What stays keeps its comments."""
    for key in document.keys() - wanted.keys():
        del document[key]
    for key, value in wanted.items():
        now = document.get(key)
        if isinstance(now, MutableMapping) and isinstance(value, Mapping):
            _become(now, value)
        elif key not in document or now != value:
            document[key] = value


def _load(repo: Any, names: Iterable[str]) -> list[Any]:
    """The stages of these names."""
    stages = {stage.name: stage for stage in repo.stage.load_file("dvc.yaml")}
    return [stages[name] for name in names]


def _record(*stages: Any) -> None:
    """Put what stages have written into DVC's cache, its run cache and dvc.lock, as after they have run."""
    for stage in stages:
        stage.save()
        stage.commit(relink=False)
    stages[0].dvcfile.dump_stages(stages, update_pipeline=False)


def _outs(stage: Any) -> list[Path]:
    return [Path(out.def_path) for out in stage.outs]


def _copy_outs(stages: Iterable[Any], source: Path, target: Path) -> None:
    for path in (path for stage in stages for path in _outs(stage)):
        _remove(target / path)
        make_folder((target / path).parent)
        if (source / path).is_dir():
            shutil.copytree(source / path, target / path, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source / path, target / path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _empty_outs(stage: Any) -> None:
    """Record outs without content, and no dependencies: DVC finds the outs, and knows that they are stale.

    Outs that dvc.lock does not have would make `dvc exp apply` and `dvc pull` fail.
    """
    for path in _outs(stage):
        _remove(path)
        if path.suffix:
            make_folder(path.parent)
            path.write_text("{}" if path.suffix == ".json" else "Not evaluated.\n")
        else:
            make_folder(path)
    stage.deps.clear()
    _record(stage)
