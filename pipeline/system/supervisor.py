"""Runs extraction as a child process and starts it again when it crashes, is killed or stalls.

Through a pipe, the child notes which clips it works on. When it dies, the next child tries these clips first,
each alone. If it dies again on one of them, that clip is guilty, and the run goes on without it. A restart is
cheap: the journal has all clips that are done. This module needs no torch, so the supervisor stays small.
"""

import contextlib
import ctypes
import logging
import math
import os
import pickle
import select
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import IO, Any

log = logging.getLogger(__name__)

# After a signal the child has this long to commit. With it, a stop takes less than 10 seconds.
_GRACE_SECONDS = 8.0
# One Ctrl-C may come twice: `timeout` and shells signal the process and then its whole group.
_SAME_SECONDS = 1.0
# Restarts in a row without a clip finished or found to crash the decoder.
_MAX_FRUITLESS_RESTARTS = 5

_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_NOTE = struct.Struct("<c16s")  # below PIPE_BUF: threads write without a lock, and notes never mix
_LIMIT = struct.Struct("<d8x")
_DECODING, _WAITING, _DONE, _COMPUTED, _JUDGED = b"d", b"w", b"f", b"c", b"j"

_PR_SET_PDEATHSIG = 1  # Linux: <sys/prctl.h>


@dataclass(frozen=True)
class Orders:
    """What a child is told when it starts. Clips are named by their keys (16 bytes)."""

    num_restarts: int = 0
    suspects: tuple[bytes, ...] = ()  # in flight when the last child died: to be tried alone, in this order
    crashed: dict[bytes, str] = field(default_factory=dict)  # guilty, permanent: key -> what happened
    set_aside: dict[bytes, str] = field(default_factory=dict)  # guilty, may pass: key -> what happened


class Notes:
    """The child's end of the pipe: it notes what it works on and that it makes progress, from any thread."""

    def __init__(self, descriptor: int | None = None) -> None:
        """Notes go to the file `descriptor`; without one, nobody listens."""
        self._descriptor = descriptor

    def decoding(self, key: bytes) -> None:
        """The decoder makes progress with this clip."""
        self._note(_DECODING, key)

    def waiting(self, key: bytes) -> None:
        """Frames of this clip wait for room: until it is noted again, its decoder can't stall."""
        self._note(_WAITING, key)

    def computed(self) -> None:
        """A batch went through the network."""
        self._note(_COMPUTED)

    def done(self, key: bytes) -> None:
        """This clip is stored, or rejected."""
        self._note(_DONE, key)

    @contextlib.contextmanager
    def judged(self, stall_seconds: float) -> Iterator[None]:
        """In the block, `stall_seconds` without progress are a stall."""
        self._note(_JUDGED, _LIMIT.pack(stall_seconds))
        try:
            yield
        finally:
            self._note(_JUDGED, _LIMIT.pack(math.inf))

    def _note(self, kind: bytes, content: bytes = b"") -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, _NOTE.pack(kind, content))


def add_options(command: Sequence[str], *, notes: int, orders: int) -> list[str]:
    """The command with the descriptors of the pipe for notes and of the file with orders."""
    return [*command, "--notes", str(notes), "--orders", str(orders)]


def read_orders(descriptor: int) -> Orders:
    """The orders that the supervisor wrote to the file `descriptor`."""
    with open(descriptor, "rb") as file:
        orders: Orders = pickle.load(file)
    return orders


def interrupt_once() -> None:
    """From now on, the first SIGINT or SIGTERM raises KeyboardInterrupt, and later ones do nothing.

    Ctrl-C in a terminal reaches the parent, which forwards it, and the child itself: the second signal must
    not interrupt the cleaning up.
    """
    told = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            raise KeyboardInterrupt

    for number in _STOP_SIGNALS:
        signal.signal(number, interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


@dataclass
class _Flight:
    """The clips in flight, as a child's notes tell them. `now` is in seconds of any clock."""

    limit_seconds: float = math.inf
    noted_at: float = 0.0
    in_flight: dict[bytes, None] = field(default_factory=dict)  # started and not done, in order
    decoding: dict[bytes, float] = field(default_factory=dict)  # when each was last noted
    num_done: int = 0
    _rest: bytes = b""

    def read(self, data: bytes, *, now: float) -> None:
        self.noted_at = now
        data = self._rest + data
        end = len(data) - len(data) % _NOTE.size
        self._rest = data[end:]
        for kind, key in _NOTE.iter_unpack(data[:end]):
            if kind == _DECODING:
                self.in_flight[key] = None
                self.decoding[key] = now
            elif kind == _WAITING:
                self.decoding.pop(key, None)
            elif kind == _DONE:
                self.in_flight.pop(key, None)
                self.decoding.pop(key, None)
                self.num_done += 1
            elif kind == _JUDGED:
                (self.limit_seconds,) = _LIMIT.unpack(key)
                self.in_flight.clear()
                self.decoding.clear()

    def stalls(self, *, now: float) -> bool:
        """Whether a decoder, or the whole run, made no progress for too long."""
        return now - min([self.noted_at, *self.decoding.values()]) > self.limit_seconds

    def suspects(self) -> tuple[bytes, ...]:
        """The clips in flight: first those whose decoder made no progress for longest, then those decoded."""
        decoding = sorted(self.decoding, key=lambda key: self.decoding[key])
        return (*decoding, *(key for key in self.in_flight if key not in self.decoding))


def supervise(command: Sequence[str]) -> int:
    """Run `command --notes FD --orders FD`, again after each crash, until it ends by itself; the exit status.

    After SIGINT and SIGTERM, the child commits what is complete and stops, and the status is 130 or 143. A
    second SIGINT kills the child. The child dies with this process.
    """
    supervisor = _Supervisor()
    previous = {number: signal.signal(number, supervisor.stop) for number in _STOP_SIGNALS}
    try:
        return supervisor.run(command)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Supervisor:
    def __init__(self) -> None:
        self._orders = Orders()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped_by: int | None = None
        self._stopped_at = math.inf
        self._num_fruitless = 0

    def stop(self, number: int, _frame: FrameType | None) -> None:
        """Handle a signal: the first one stops the child, a second Ctrl-C kills it."""
        now = time.monotonic()
        if self._stopped_by is None:
            self._stopped_by, self._stopped_at = number, now
            if self._child:
                self._child.send_signal(signal.SIGINT)
        elif number == signal.SIGINT and now - self._stopped_at > _SAME_SECONDS:
            self._stopped_at = -math.inf

    def run(self, command: Sequence[str]) -> int:
        while True:
            flight = _Flight()
            status, stalled = self._run_child(command, flight)
            if self._stopped_by is not None:
                if status == -signal.SIGKILL:
                    log.warning("Stopped at once. What was committed is kept: run the same command to go on.")
                return 128 + self._stopped_by if status else 0
            if status >= 0 and not stalled:
                return status
            cause = f"made no progress for {flight.limit_seconds:g} s" if stalled else _death(-status)
            if not flight.in_flight:
                log.error("The run %s, outside of any clip. What was committed is kept.", cause)
                return 128 - status
            self._judge(flight, cause, crashed=not stalled and -status in _CRASHES)
            if self._num_fruitless > _MAX_FRUITLESS_RESTARTS:
                log.error(
                    "The run %s, for the %dth time without a clip done. What was committed is kept: look for"
                    " what this machine lacks (memory, a disk that answers), then run it again.",
                    cause,
                    self._num_fruitless,
                )
                return 1

    def _judge(self, flight: _Flight, cause: str, *, crashed: bool) -> None:
        """Find the clip, or the suspects, on which a child died."""
        last = self._orders
        orders = replace(last, num_restarts=last.num_restarts + 1, suspects=())
        suspects = flight.suspects()
        if len(suspects) == 1 and suspects[0] in last.suspects:  # it was alone
            guilty = {suspects[0]: f"the run {cause} on this clip alone"}
            untried = last.suspects[last.suspects.index(suspects[0]) + 1 :]
            orders = replace(orders, suspects=untried)
            log.warning("The run %s on one clip alone: going on without it.", cause)
            if crashed:
                orders = replace(orders, crashed=last.crashed | guilty)
            else:
                orders = replace(orders, set_aside=last.set_aside | guilty)
        else:
            log.warning("The run %s. Starting it again, with %d clips tried alone.", cause, len(suspects))
            orders = replace(orders, suspects=suspects)
        fruitful = flight.num_done or orders.crashed != last.crashed
        self._num_fruitless = 0 if fruitful else self._num_fruitless + 1
        self._orders = orders

    def _run_child(self, command: Sequence[str], flight: _Flight) -> tuple[int, bool]:
        """(exit status, negative for a signal; whether it was ended because it stalled)."""
        readable, writable = os.pipe()
        with tempfile.TemporaryFile() as orders, open(readable, "rb", buffering=0) as notes:  # noqa: PTH123
            pickle.dump(self._orders, orders)
            orders.seek(0)
            try:
                child = subprocess.Popen(
                    add_options(command, notes=writable, orders=orders.fileno()),
                    pass_fds=(writable, orders.fileno()),
                    preexec_fn=_bind_to(os.getpid()),
                )
            finally:
                os.close(writable)
            self._child = child
            if self._stopped_by is not None:  # between two children
                child.kill()
            try:
                return self._follow(child, notes, flight)
            finally:
                child.kill()
                child.wait()

    def _follow(
        self, child: "subprocess.Popen[bytes]", notes: IO[bytes], flight: _Flight
    ) -> tuple[int, bool]:
        stalled = False
        now, turned_at = 0.0, time.monotonic()
        while True:
            if select.select([notes], [], [], 0.2)[0]:
                data = notes.read(1 << 16)
                if not data:
                    return child.wait(), stalled
                flight.read(data, now=now)
            elif child.poll() is not None:  # a process that it left behind may hold the pipe
                return child.returncode, stalled
            # Time in which both were suspended (Ctrl-Z) is no stall.
            last, turned_at = turned_at, time.monotonic()
            now += min(turned_at - last, 1.0)
            if not stalled and self._stopped_by is None and flight.stalls(now=now):
                stalled = True
                child.kill()
            if turned_at - self._stopped_at > _GRACE_SECONDS:
                child.kill()


def _death(number: int) -> str:
    name = signal.Signals(number).name
    hint = ", as for want of memory" if number == signal.SIGKILL else ""
    return f"{'crashed' if number in _CRASHES else 'was killed'} ({name}{hint})"


def _bind_to(parent: int) -> Any:
    """What a child does before it becomes its program: from then on it dies with its parent.

    So there are never two writers. Signals wait until the program has its handlers.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)

    return bind
