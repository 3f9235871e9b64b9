"""Where a corpus is, also for queued and temporary experiments, which run in a folder of their own."""

import os
import shutil
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.manifest.files import is_image, is_video
from stages.project.git import run_git


def corpus_root(root: str) -> Path:
    """The folder of the corpus, which may be missing. A relative one is below the project.

    An experiment in a folder of its own has there what git and DVC track, and takes it. Everything else is
    only in the project, which DVC_ROOT then names. A folder without images and videos is no corpus: git may
    track a README or labels beside videos that it ignores.
    """
    here, project = Path(root), Path(os.environ.get("DVC_ROOT", "."), root)
    if here == project or any(is_image(path) or is_video(path) for path in here.rglob("[!.]*")):
        return here
    return project


def imported_features(folder: str) -> Path:
    """The folder of imported features, which may be missing: here, or else in the project."""
    return Path(folder) if Path(folder).exists() else Path(os.environ.get("DVC_ROOT", "."), folder)


def visible_manifest(manifest: str) -> Path:
    """The manifest. Raises ConfigError when it is relative and tracked by neither git nor DVC."""
    path = Path(manifest)
    if path.is_absolute() or not path.is_file() or _git_tracks(path) or _dvc_tracks(path):
        return path  # one that is missing has its own message
    raise ConfigError(
        f"corpus.manifest: {manifest!r} is tracked by neither git nor DVC, so queued experiments would not"
        f" find it. Commit it: `git add {manifest}` (with -f if git ignores it) and `git commit`. Without the"
        " commit, `dvc exp run` undoes the `git add`."
    )


def _git_tracks(path: Path) -> bool:
    """Whether git has this file, or files of this folder. Without git there are no experiments: then True."""
    if shutil.which("git") is None:
        return True
    listing = run_git(Path(), "ls-files", "--", str(path), check=False)
    if listing.returncode and b"not a git repository" not in listing.stderr:
        raise ConfigError(f"git does not say whether it tracks {path}: {listing.stderr.decode().strip()}")
    return bool(listing.stdout) or listing.returncode != 0


def _dvc_tracks(path: Path) -> bool:
    from dvc.exceptions import DvcException, NotDvcRepoError, OutputNotFoundError
    from dvc.repo import Repo  # takes a second to import

    try:
        with Repo() as repo:
            return bool(repo.find_outs_by_path(str(path), strict=False))
    except (OutputNotFoundError, NotDvcRepoError):
        return False
    except DvcException as error:
        raise ConfigError(f"DVC does not say whether it tracks {path}: {error}") from error
