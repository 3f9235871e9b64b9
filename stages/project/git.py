"""Runs git."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import StoreError


def run_git(
    project: Path,
    *arguments: str,
    stdin: bytes = b"",
    check: bool = True,
    environment: Mapping[str, str] = {},
) -> "subprocess.CompletedProcess[bytes]":
    """Run git in the folder `project`, with its messages in English. `environment` adds variables.

    Raises StoreError without git and, with `check`, when git fails.
    """
    if shutil.which("git") is None:
        raise StoreError(f"git is not installed, and {project} may need features of its other revisions.")
    done = subprocess.run(
        ["git", *arguments],
        cwd=project,
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, **environment, "LC_ALL": "C"},  # its messages are read
    )
    if check and done.returncode:
        raise StoreError(
            f"`git {' '.join(arguments)}` in {project}: {done.stderr.decode(errors='replace').strip()}"
        )
    return done


def is_in_git(project: Path) -> bool:
    """Whether the folder belongs to a git repository. Raises StoreError when git can't tell."""
    done = run_git(project, "rev-parse", check=False)
    if done.returncode and b"not a git repository" not in done.stderr:
        raise StoreError(f"`git rev-parse` in {project}: {done.stderr.decode(errors='replace').strip()}")
    return done.returncode == 0
