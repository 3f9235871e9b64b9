"""The third lane: a thread that appends finished rows to shards and closes clips."""

import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.errors import DecodeError
from pipeline.extract.compute import ClipEnd, Segment, Written
from pipeline.extract.plan import PlannedClip
from pipeline.store import ClipSource, Journal, Quarantined, ShardWriter

log = logging.getLogger(__name__)


@dataclass
class Result:
    """What a run did."""

    num_frames: int = 0
    num_clips: int = 0
    num_batches: int = 0
    seconds: float = 0.0
    num_quarantined: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # what may pass: clip id -> error


class Writer:
    """The writer thread: appends finished rows and closes clips. Its errors reach the caller."""

    def __init__(
        self,
        writers: Mapping[str, ShardWriter],
        journal: Journal,
        forward_digest: str,
        result: Result,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self._writers = writers
        self._journal = journal
        self._forward_digest = forward_digest
        self._result = result
        self._on_progress = on_progress
        self._queue: queue.Queue[list[Written] | None] = queue.Queue(maxsize=4)
        self._error: BaseException | None = None
        # One segment a clip is held back: only the next one, or the end, tells whether it is the last.
        self._held: dict[bytes, tuple[Segment, dict[str, np.ndarray[Any, Any]]]] = {}
        self._num_frames: Counter[bytes] = Counter()
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error and kind is None:
            raise self._error

    def put(self, items: list[Written]) -> None:
        if self._error:
            raise self._error
        if items:
            self._queue.put(items)

    def _work(self) -> None:
        while (items := self._queue.get()) is not None:
            if self._error:
                continue  # drain: the producer must never block on a dead writer
            try:
                for item in items:
                    self._write(item)
            except BaseException as error:
                self._error = error

    def _write(self, item: Written) -> None:
        if isinstance(item, ClipEnd):
            self._end(item)
            return
        key = item[0].clip.key
        if held := self._held.get(key):
            self._append(*held, final=False)
        self._held[key] = item
        self._num_frames[key] += len(item[0].frame_seconds)
        self._on_progress(0, len(item[0].frame_seconds))

    def _append(self, segment: Segment, rows: dict[str, np.ndarray[Any, Any]], *, final: bool) -> None:
        for tap, values in rows.items():
            self._writers[tap].append(_source(segment.clip), values, segment.frame_seconds, final=final)

    def _end(self, end: ClipEnd) -> None:
        clip = end.clip
        held = self._held.pop(clip.key, None)
        error = end.error
        num_frames = self._num_frames.pop(clip.key, 0)
        if error is None and held is None:
            error = DecodeError(f"{clip.clip.sources[0]}: no frame in the clip's time range.")
        if error is None and held is not None:
            self._append(*held, final=True)
            self._result.num_clips += 1
            self._result.num_frames += num_frames
        else:
            for tap in clip.taps:
                self._writers[tap].drop(_source(clip))
            self._fail(clip, error)
        self._on_progress(1, 0)

    def _fail(self, clip: PlannedClip, error: Exception | None) -> None:
        clip_id, source = clip.clip.clip_id, "|".join(clip.clip.sources)
        if isinstance(error, DecodeError):
            num_recovered = getattr(error, "num_recovered", 0)
            quarantined = Quarantined(clip_id, source, str(error), num_recovered)
            self._journal.quarantine(self._forward_digest, clip.key, quarantined)
            self._result.num_quarantined += 1
            log.warning("Clip %s is quarantined: %s", clip_id, error)
        elif isinstance(error, OSError | MemoryError | TimeoutError):
            self._result.failed[clip_id] = str(error)
            log.error("Clip %s could not be read: %s", clip_id, error)
        else:
            assert error is not None
            raise error


def _source(clip: PlannedClip) -> ClipSource:
    return ClipSource(clip.key, clip.clip.clip_id, "|".join(clip.clip.sources))
