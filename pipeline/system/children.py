"""Child processes, which tell their caller what they do. A crash ends the child, and not the caller."""

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from types import TracebackType
from typing import IO, Any, Self, TypeVar, cast

from pipeline.system.parallel import in_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

# Unlike multiprocessing's, this process does not import the caller's script, which may have no `__main__`.
_PROGRAM = "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); pickle.load(sys.stdin.buffer)()"


class Child:
    """A process that does some work. As a context manager it ends with the block, and Ctrl-C passes it by."""

    def __init__(self, work: Callable[..., object], *arguments: object) -> None:
        """Start `work(*arguments, tell)` in a new process; `tell(message)` sends a message to this one.

        All of them are pickled.
        """
        readable, writable = os.pipe()
        self.messages = Connection(readable, writable=False)
        try:
            order = pickle.dumps(sys.path) + pickle.dumps(partial(_run, work, arguments, writable))
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                pass_fds=[writable],
                start_new_session=True,  # a terminal's Ctrl-C is for the caller alone
            )
        finally:
            os.close(writable)
        with suppress(BrokenPipeError), cast(IO[bytes], self._process.stdin) as stdin:
            stdin.write(order)  # BrokenPipeError: the process has ended already

    def ending(self) -> str:
        """How the process ended, once it has no more messages: `by SIGSEGV`, `with exit code 1`; "": well."""
        code = self._process.wait()
        if code < 0:
            return f"by {signal.Signals(-code).name}"
        return f"with exit code {code}" if code else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self.messages.close()


def _run(work: Callable[..., object], arguments: Sequence[object], writable: int) -> None:
    with suppress(BrokenPipeError):  # the caller is gone
        work(*arguments, Connection(writable, readable=False).send)


@dataclass(frozen=True)
class Crash:
    """In place of a result: the process ended while it worked on this item alone."""

    ending: str  # see `Child.ending`


def in_child(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_threads: int
) -> Iterator[Result | Crash]:
    """function(item) for each item, in order, by threads of a child process.

    When a signal ends the child, another one goes on: first with the items that were begun, one by one, so
    that it is known which one has a `Crash`. Function, items and results are pickled. Raises RuntimeError
    when `function` raises an error, which is printed.
    """
    left, num_alone = list(items), 0
    while left:
        num_done = 0
        with Child(_work, function, left, num_alone, num_threads) as child:
            for result in _messages(child):
                num_done += 1
                yield result
            left = left[num_done:]
            if (ending := child.ending()) and not ending.startswith("by "):
                raise RuntimeError(f"A process ended {ending}; its error is above.")
        if left and num_done < num_alone:
            yield Crash(ending)
            left, num_alone = left[1:], num_alone - num_done - 1
        else:
            num_alone = 5 * num_threads + 1  # that `in_threads` may have begun


def _messages(child: Child) -> Iterator[Any]:
    with suppress(EOFError, OSError):  # OSError: the child ended within a message
        while True:
            yield child.messages.recv()


def _work(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    num_alone: int,
    num_threads: int,
    tell: Callable[[Result], None],
) -> None:
    alone, others = items[:num_alone], items[num_alone:]
    for result in chain(map(function, alone), in_threads(function, others, num_threads=num_threads)):
        tell(result)
