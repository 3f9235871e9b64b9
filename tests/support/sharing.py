"""Users of one group who share a journal: each acts in a process of its own, under a umask of 022."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.testing  # noqa: F401 - imported later, it would be read by users who have no access to Python

from pipeline.store import Journal, Quarantined
from pipeline.store.upkeep.gc import find_garbage, remove_garbage
from tests.support.features import assert_holds, fill, make_contract, make_layout, publish_clips

ANN, BOB, GROUP = 4001, 4002, 4003  # users and their group; they need no accounts

CONTRACT = make_contract()
LAYOUT = make_layout(CONTRACT)

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.support.sharing"])


def act_as(user: int, work: Callable[..., object], *arguments: Any) -> None:
    """Run `work` as a member of GROUP whose umask is 022; it must not raise."""
    process = _PROCESSES.Process(target=_act, args=(user, work, *arguments))
    process.start()
    process.join()
    assert process.exitcode == 0


def _act(user: int, work: Callable[..., object], *arguments: Any) -> None:
    os.setgroups([GROUP])
    os.setresgid(user, user, user)  # each has a primary group of one's own, as on Debian
    os.setresuid(user, user, user)
    os.umask(0o022)
    work(*arguments)


def use_journal(path: Path, clip_id: str) -> None:
    """All that a run does in a journal: lock, sweep, quarantine, write a clip, remember digests."""
    journal = Journal(path)
    digest = CONTRACT.forward_digest()
    with journal.lock(digest, on_wait=print):
        journal.sweep(CONTRACT, LAYOUT)
        with journal.writing(digest):  # as a Dask worker does
            pass
        journal.quarantine(digest, b"k" * 16, Quarantined(clip_id, "a.mp4", "damaged", 0))
        fill(journal, CONTRACT, LAYOUT, {clip_id: 5})
    journal.touch(CONTRACT)
    digests = journal.digest_cache()
    digests._changed = True
    digests._known[(1, 2, 3, 4, 5)] = b"d" * 16
    digests.save()


def publish_all(path: Path, view: Path) -> None:
    journal = Journal(path)
    with journal.lock(CONTRACT.forward_digest(), on_wait=print):
        journal.sweep(CONTRACT, LAYOUT)
        publish_clips(journal, CONTRACT, LAYOUT, ["ann", "bob"], view)
    assert_holds(view / "layer4", {"ann": 5, "bob": 5})


def remove_all(path: Path) -> None:
    journal = Journal(path)
    with journal.exclusive(on_wait=print):
        remove_garbage(journal, find_garbage(journal, [], now_seconds=0, training_days=1))
    journal.forgive(CONTRACT.forward_digest(), [b"k" * 16])
    assert list(path.glob("contracts/*")) == list(path.glob("quarantine/*/*")) == []
