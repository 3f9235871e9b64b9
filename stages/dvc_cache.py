"""What DVC and git know of features: objects in DVC's cache, and what each revision needs of the journal."""

import hashlib
import io
import json
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import yaml

from pipeline.contract import FeatureContract
from pipeline.errors import StoreError
from pipeline.store.care import file_identity
from pipeline.store.gc import Need
from pipeline.store.records import RECORD_SUFFIX
from pipeline.store.view import INDEX_NAME

FEATURES = Path("features")

# Of a contract, what parameters alone do not say.
_UNKNOWN_FIELDS = {"weights_sha256", "mean", "std", "revision"}
_QUEUES = ("refs/exps/celery/stash", "refs/exps/stash")


@dataclass(frozen=True)
class Cache:
    """DVC's cache of objects, by md5."""

    path: Path

    @classmethod
    def of(cls, project: Path) -> "Cache":
        """Raises dvc.exceptions.NotDvcRepoError."""
        from dvc.repo import Repo  # takes a second to import

        with Repo(str(project)) as repo:
            return cls(Path(repo.cache.local.path))

    def object(self, md5: str) -> Path:
        return self.path / md5[:2] / md5[2:]

    def listing(self, md5: str) -> dict[str, str] | None:
        """{path inside: md5} of a folder (`md5` ends with .dir); None when the cache has it not."""
        path = self.object(md5)
        if not path.exists():
            return None
        return {entry["relpath"]: entry["md5"] for entry in json.loads(path.read_text())}


def tracked_files(path: Path) -> dict[str, Path]:
    """{path inside: file} of the folder `path`, an out of dvc.lock, in DVC's cache."""
    digest = out_digest(_read(Path("dvc.lock")), path)
    if digest is None:
        return {}
    cache = Cache.of(Path())
    return {name: cache.object(md5) for name, md5 in (cache.listing(digest) or {}).items()}


def out_digest(lock: bytes, path: Path) -> str | None:
    """The md5 that a dvc.lock has of the folder `path`."""
    stages = (yaml.safe_load(lock) or {}).get("stages", {})
    for stage in stages.values():
        for out in stage.get("outs", []):
            if PurePosixPath(out["path"]) == PurePosixPath(path) and out.get("md5", "").endswith(".dir"):
                return str(out["md5"])
    return None


def damaged_objects(files: Collection[Path], *, view: Path) -> list[Path]:
    """The objects of DVC's cache that are one of `files`, or a copy of one that is damaged too.

    DVC never reads its read-only objects again: it would bring the damage back.
    """
    if not Path(".dvc").is_dir():
        return []
    identities = {file_identity(path) for path in files if path.exists()}
    objects = Cache.of(Path()).path.glob("*/*")
    found = [path for path in objects if file_identity(path) in identities]
    names = {str(path.relative_to(view)) for path in files if path.is_relative_to(view)}
    copies = [path for name, path in tracked_files(view).items() if name in names and path.exists()]
    return found + [path for path in copies if _md5(path) != f"{path.parent.name}{path.name}"]


def needs(project: Path) -> list[Need]:
    """What a project needs of the journal: its workspace, every revision and experiment, queued ones too."""
    found = [need for folder in _workspaces(project) for need in _workspace_needs(folder)]
    if not _is_in_git(project):
        return found
    cache = Cache.of(project) if (project / ".dvc").is_dir() else None
    revisions = _git(project, "rev-list", "--all", "--full-history", "--", "dvc.lock", "params.yaml").split()
    named = [
        need
        for revision, lock, params in _states(project, revisions)
        for need in _lock_needs(f"revision {revision[:7]}", lock, params, cache)
    ]
    found += {need.shard_ids or need.name: need for need in named}.values()  # few revisions change features
    refs = _git(project, "for-each-ref", "--format=%(refname)", *_QUEUES).split()
    queued = [
        revision for ref in refs for revision in _git(project, "rev-list", "--walk-reflogs", ref).split()
    ]
    for revision, _, params in _states(project, queued):
        found.append(Need(f"queued experiment {revision[:7]}", fits=fitting(params)))
    return found


def _workspaces(project: Path) -> list[Path]:
    """The project's own, and those of experiments that run now."""
    running = project.glob(".dvc/tmp/exps/*/params.yaml")
    return [project, *(path.parent for path in running)]


def _workspace_needs(folder: Path) -> Iterator[Need]:
    """The view's shards, and what an unfinished extraction has committed since the view was published."""
    view = folder / FEATURES
    records = view.glob(f"*/records/*{RECORD_SUFFIX}")
    published = [path.stat().st_mtime for path in view.glob(f"*/{INDEX_NAME}")]
    params = _read(folder / "params.yaml")
    yield Need(
        f"workspace {folder.resolve()}",
        frozenset(path.stem for path in records),
        fits=fitting(params),
        since_seconds=max(published, default=0),
    )
    cache = Cache.of(folder) if (folder / ".dvc").is_dir() else None
    yield from _lock_needs(f"dvc.lock of {folder.resolve()}", _read(folder / "dvc.lock"), params, cache)


def _lock_needs(name: str, lock: bytes, params: bytes, cache: Cache | None) -> Iterator[Need]:
    """The shards of the features that a dvc.lock names; without their list, all that fit the parameters."""
    digest = out_digest(lock, FEATURES)
    if digest is None:
        return
    md5s = cache.listing(digest) if cache else None
    if md5s is None:
        yield Need(f"{name} (its list of features is not in DVC's cache)", fits=fitting(params))
    else:
        names = (PurePosixPath(name) for name in md5s)
        yield Need(name, frozenset(path.stem for path in names if path.suffix == RECORD_SUFFIX))


def fitting(params: bytes) -> Callable[[FeatureContract], bool]:
    """Whether a contract may be what a params.yaml asks for; one that can't be read may ask for anything."""
    try:
        document = yaml.safe_load(params)
        extract = document["extract"]
        fields = ("sampling", "preprocessing", "precision", "backend", "pooling", "dtype")
        asked = [
            FeatureContract(
                tap=tap,
                arch=document["weights"]["arch"],
                weights_sha256="",
                mean=(0, 0, 0),
                std=(1, 1, 1),
                **{field: extract[field] for field in fields if field in extract},
            )
            for tap in extract["taps"]
        ]
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return lambda _: True
    return lambda contract: any(each.differences(contract).keys() <= _UNKNOWN_FIELDS for each in asked)


def _states(project: Path, revisions: Sequence[str]) -> Iterator[tuple[str, bytes, bytes]]:
    """(revision, its dvc.lock, its params.yaml), where the two differ from those of the revisions before."""
    names = [f"{revision}:./{name}" for revision in revisions for name in ("dvc.lock", "params.yaml")]
    output = io.BytesIO(_run_git(project, "cat-file", "--batch", stdin="\n".join(names).encode()))
    contents = []
    for _ in names:
        *_, size = output.readline().split()  # `<id> blob <size>`, or `<name> missing`
        contents.append(b"" if size == b"missing" else output.read(int(size)))
        if size != b"missing":
            output.readline()
    pairs = zip(revisions, contents[::2], contents[1::2], strict=True)
    distinct = {(lock, params): revision for revision, lock, params in pairs}
    for (lock, params), revision in distinct.items():
        yield revision, lock, params


def _git(project: Path, *arguments: str) -> str:
    return _run_git(project, *arguments).decode()


def _run_git(project: Path, *arguments: str, stdin: bytes = b"") -> bytes:
    done = subprocess.run(["git", *arguments], cwd=project, input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise StoreError(f"`git {' '.join(arguments)}` in {project}: {done.stderr.decode().strip()}")
    return done.stdout


def _is_in_git(project: Path) -> bool:
    done = subprocess.run(["git", "rev-parse"], cwd=project, capture_output=True, text=True, check=False)
    if done.returncode and "not a git repository" not in done.stderr:
        raise StoreError(f"`git rev-parse` in {project}: {done.stderr.strip()}")
    return done.returncode == 0


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()
