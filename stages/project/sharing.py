"""Shares the journal with a group of users, where DVC shares its cache with them."""

import os
import stat
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.system.files import make_folder, share


def share_journal(path: Path) -> None:
    """Let the group write to the journal `path`, made if it is missing, where DVC lets it write to its cache.

    What is made in the journal later is shared by `pipeline.system.files.share`. Raises StoreError when DVC
    can't read its settings.
    """
    project = Path(os.environ.get("DVC_ROOT", "."))
    if not (project / ".dvc").is_dir() or not _dvc_shares(project):
        return
    make_folder(path)
    folder = path.stat()
    if folder.st_mode & stat.S_IWGRP or folder.st_uid != os.geteuid() or not os.access(path, os.W_OK):
        return
    path.chmod(stat.S_IMODE(folder.st_mode) | stat.S_IRWXG | stat.S_ISGID)
    for each in sorted(path.rglob("*")):  # a folder before what is in it
        share(each)


def _dvc_shares(project: Path) -> bool:
    from dvc.config import Config
    from dvc.exceptions import DvcException

    try:
        return bool(Config(str(project / ".dvc"))["cache"].get("shared") == "group")
    except DvcException as error:
        raise StoreError(f"DVC can't read its settings in {project.resolve()}: {error}") from error
