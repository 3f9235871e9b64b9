"""Runs a function in a process of its own that is killed: at its n-th change of the disk, or in time."""

import itertools
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# A server that has everything imported forks each process: a kill costs milliseconds.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["tests.support.store_cases"])

_CHANGES = {"os.rename", "os.link", "os.symlink", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_CHANGING_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_DIRECTORY  # a folder is opened to flush it


def count_changes(work: Callable[..., object], *arguments: Any) -> int:
    """Run `work` undisturbed; how often it changed the disk."""
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_count_changes, args=(sender, work, *arguments))
    process.start()
    count = int(receiver.recv())
    assert not _was_killed(process)
    return count


def killed_at_change(number: int, work: Callable[..., object], *arguments: Any) -> bool:
    """Run `work` and kill it just before its `number`-th change on the disk.

    False when it made fewer and ended well.
    """
    process = _PROCESSES.Process(target=_die_at_change, args=(number, work, *arguments))
    process.start()
    return _was_killed(process)


def killed_after(seconds: float, work: Callable[..., object], *arguments: Any) -> bool:
    """Run `work` and kill it after some time. False when it ended well before."""
    receiver, sender = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=_say_and_work, args=(sender, work, *arguments))
    process.start()
    receiver.recv()
    time.sleep(seconds)
    process.kill()
    receiver.close()
    sender.close()
    return _was_killed(process)


def _was_killed(process: Any) -> bool:
    process.join()
    code = process.exitcode
    process.close()
    assert code in (0, -signal.SIGKILL), f"the process failed with {code}"
    return bool(code)


def _die_at_change(number: int, work: Callable[..., object], *arguments: Any) -> None:
    changes = itertools.count(1)

    def die() -> None:
        if next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    _on_change(die)
    work(*arguments)


def _count_changes(sender: Connection, work: Callable[..., object], *arguments: Any) -> None:
    changes = itertools.count()
    _on_change(lambda: next(changes))
    work(*arguments)
    sender.send(next(changes))


def _on_change(callback: Callable[[], object]) -> None:
    """Have `callback` called before every change of the disk, from now to the end of the process."""

    def watch(event: str, values: tuple[Any, ...]) -> None:
        if event in _CHANGES or (event == "open" and values[2] & _CHANGING_FLAGS):
            callback()

    sys.dont_write_bytecode = True  # what is imported late would count as a change, once
    sys.addaudithook(watch)


def _say_and_work(sender: Connection, work: Callable[..., object], *arguments: Any) -> None:
    sender.send(None)
    work(*arguments)
