"""What git has of dvc.lock and params.yaml: every revision, however damaged the repository is."""

import io
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import StoreError

_LOST = b"\0"  # stands for a file that git has lost: no YAML either


def read_history(project: Path) -> tuple[list[str], list[str]]:
    """The revisions that change dvc.lock or params.yaml, stashes too; and the refs that git can't read."""
    history = ("--full-history", "--", "dvc.lock", "params.yaml")
    stashed, lost = read_reflogs(project, "refs/stash")
    try:
        return _git(project, "rev-list", "--all", *history).split() + stashed, lost
    except StoreError:  # one broken ref is enough
        pass
    refs, broken = _refs(project)
    revisions = dict.fromkeys(stashed)
    for ref in ["HEAD", *refs]:
        try:
            revisions |= dict.fromkeys(_git(project, "rev-list", ref, *history).split())
        except StoreError:
            broken.append(ref)
    return list(revisions), lost + broken


def read_reflogs(project: Path, *patterns: str) -> tuple[list[str], list[str]]:
    """The revisions that these refs are and were (stashes, a queue); and the refs that git can't read."""
    refs, broken = _refs(project, *patterns)
    revisions = []
    for ref in refs:
        try:
            revisions += _git(project, "rev-list", "--walk-reflogs", ref).split()
        except StoreError:
            broken.append(ref)
    return revisions, broken


def _refs(project: Path, *patterns: str) -> tuple[list[str], list[str]]:
    """Refs, and those that name no object at all."""
    done = run_git(project, "for-each-ref", "--format=%(refname)", *patterns)
    broken = re.findall(r"ignoring broken ref (\S+)", done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace").split(), broken


def states(project: Path, revisions: Sequence[str]) -> Iterator[tuple[str, bytes, bytes]]:
    """(revision, its dvc.lock, its params.yaml), where the two differ from those of the revisions before."""
    names = [f"{revision}:./{name}" for revision in revisions for name in ("dvc.lock", "params.yaml")]
    contents = _contents(project, names)
    pairs = zip(revisions, contents[::2], contents[1::2], strict=True)
    distinct = {(lock, params): revision for revision, lock, params in pairs}
    for (lock, params), revision in distinct.items():
        yield revision, lock, params


def _contents(project: Path, names: Sequence[str]) -> list[bytes]:
    """Of each `revision:./file`: its content, b"" where there is none, _LOST where git has lost it."""
    try:
        done = run_git(project, "cat-file", "--batch", stdin="\n".join(names).encode())
    except StoreError:
        if len(names) <= 1:
            return [_LOST] * len(names)
        middle = len(names) // 2
        return _contents(project, names[:middle]) + _contents(project, names[middle:])
    output = io.BytesIO(done.stdout)
    contents = []
    for name in names:
        *_, size = output.readline().split()  # `<id> blob <size>`, or `<name> missing`
        if size == b"missing":
            revision, _, file = name.partition(":")
            listed = run_git(project, "ls-tree", revision, "--", file, check=False)
            contents.append(_LOST if listed.stdout or listed.returncode else b"")
        else:
            contents.append(output.read(int(size)))
            output.readline()
    return contents


def _git(project: Path, *arguments: str) -> str:
    return run_git(project, *arguments).stdout.decode(errors="replace")


def run_git(
    project: Path, *arguments: str, stdin: bytes = b"", check: bool = True
) -> "subprocess.CompletedProcess[bytes]":
    if shutil.which("git") is None:
        raise StoreError(f"git is not installed, and {project} may need features of its other revisions.")
    done = subprocess.run(
        ["git", *arguments],
        cwd=project,
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C"},  # its messages are read
    )
    if check and done.returncode:
        raise StoreError(
            f"`git {' '.join(arguments)}` in {project}: {done.stderr.decode(errors='replace').strip()}"
        )
    return done


def is_in_git(project: Path) -> bool:
    done = run_git(project, "rev-parse", check=False)
    if done.returncode and b"not a git repository" not in done.stderr:
        raise StoreError(f"`git rev-parse` in {project}: {done.stderr.decode(errors='replace').strip()}")
    return done.returncode == 0
