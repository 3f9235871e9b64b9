"""The revisions of dvc.lock and params.yaml that git has, however damaged the repository is."""

import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import StoreError
from stages.project.git import run_git

_LOST = b"\0"  # stands for a file that git has lost: no YAML either


def read_history(project: Path) -> tuple[list[str], list[str]]:
    """The revisions that change dvc.lock or params.yaml, with stashes; and the refs that git can't read."""
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
    """All revisions in the reflogs of these refs (stashes, a queue); and the refs that git can't read."""
    refs, broken = _refs(project, *patterns)
    revisions = []
    for ref in refs:
        try:
            revisions += _git(project, "rev-list", "--walk-reflogs", ref).split()
        except StoreError:
            broken.append(ref)
    return revisions, broken


def _refs(project: Path, *patterns: str) -> tuple[list[str], list[str]]:
    """The names of refs, and of those that name no object."""
    done = run_git(project, "for-each-ref", "--format=%(refname)", *patterns)
    broken = re.findall(r"ignoring broken ref (\S+)", done.stderr.decode(errors="replace"))
    return done.stdout.decode(errors="replace").split(), broken


def states(project: Path, revisions: Sequence[str]) -> Iterator[tuple[str, bytes, bytes]]:
    """(revision, its dvc.lock, its params.yaml), once for each pair of contents."""
    names = [f"{revision}:./{name}" for revision in revisions for name in ("dvc.lock", "params.yaml")]
    contents = _contents(project, names)
    pairs = zip(revisions, contents[::2], contents[1::2], strict=True)
    distinct = {(lock, params): revision for revision, lock, params in pairs}
    for (lock, params), revision in distinct.items():
        yield revision, lock, params


def _contents(project: Path, names: Sequence[str]) -> list[bytes]:
    """The content of each `revision:./file`: b"" where there is none, _LOST where git has lost it."""
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
