"""Lanes: the kinds of work that go on side by side in a run, the time of each, and the queues between."""

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

T = TypeVar("T")

LaneName = Literal["decode", "to_device", "compute", "to_host", "write"]

_adding = threading.Lock()


@dataclass
class Lane:
    """Seconds of one kind of work, summed over its threads.

    A lane is busy, starved (waiting for input), or blocked (waiting for room in the next lane).
    """

    num_threads: int = 1
    busy_seconds: float = 0.0
    starved_seconds: float = 0.0
    blocked_seconds: float = 0.0

    def add(self, *, busy: float = 0.0, starved: float = 0.0, blocked: float = 0.0) -> None:
        """Count seconds; any thread may."""
        with _adding:
            self.busy_seconds += busy
            self.starved_seconds += starved
            self.blocked_seconds += blocked

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time of the block as busy."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(busy=time.monotonic() - started)


Lanes = dict[LaneName, Lane]


def make_lanes(*, num_decoders: int, num_writers: int = 1) -> Lanes:
    """A lane for each kind of work, with one thread, but for the decoders and writers."""
    num_threads: dict[LaneName, int] = {"decode": num_decoders, "write": num_writers}
    return {name: Lane(num_threads.get(name, 1)) for name in get_args(LaneName)}


class ByteQueue(Generic[T]):
    """A first-in, first-out queue between two lanes, limited in bytes and not in items, which differ in size.

    An item that is larger than the limit passes when the queue is empty.
    """

    def __init__(self, limit_bytes: int, *, producer: Lane, consumer: Lane) -> None:
        self._limit_bytes = limit_bytes
        self._producer = producer
        self._consumer = consumer
        self._items: deque[tuple[T, int]] = deque()
        self._size_bytes = 0
        self._closed = False
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._has_room = threading.Condition(lock)

    def put(self, item: T, *, size_bytes: int) -> bool:
        """Wait for room, then add the item. Returns False, without adding it, when the queue is closed."""
        started = time.monotonic()
        with self._has_room:
            while not self._closed and self._items and self._size_bytes + size_bytes > self._limit_bytes:
                self._has_room.wait()
            if not self._closed:
                self._items.append((item, size_bytes))
                self._size_bytes += size_bytes
                self._filled.notify()
                if self._size_bytes < self._limit_bytes:  # room for one more; all at once would fight for it
                    self._has_room.notify()
            accepted = not self._closed
        self._producer.add(blocked=time.monotonic() - started)
        return accepted

    def get(self) -> T | None:
        """Wait for an item and remove it. Returns None when the queue is closed and empty."""
        started = time.monotonic()
        with self._filled:
            while not self._closed and not self._items:
                self._filled.wait()
            item = None
            if self._items:
                item, size_bytes = self._items.popleft()
                self._size_bytes -= size_bytes
                self._has_room.notify()
        self._consumer.add(starved=time.monotonic() - started)
        return item

    def close(self) -> None:
        """Refuse further items. Those in the queue can still be removed."""
        with self._filled:
            self._closed = True
            self._filled.notify_all()
            self._has_room.notify_all()
