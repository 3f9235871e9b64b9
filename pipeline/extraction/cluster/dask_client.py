"""The client's part of an extraction on Dask: hands clips to workers, and takes them back from dead ones.

Every worker has one batch at a time, pinned to it. So it is known which clips a worker had when it died.
"""

import contextlib
import logging
import math
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, Future, KilledWorker

from pipeline.errors import ConfigError, PipelineError, StoreError
from pipeline.extraction.cluster import dask_worker
from pipeline.extraction.cluster.chunks import Chunks
from pipeline.extraction.cluster.dask_worker import TaskContext
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from pipeline.extraction.targets import Target
from pipeline.extraction.write import OnWork
from pipeline.store import Journal, Quarantined, stored_keys
from pipeline.store.format.records import RECORD_SUFFIX, read_record

log = logging.getLogger(__name__)

DEATHS_ALONE = 2  # so many workers die while they have one clip alone: then the clip is guilty
_POLL_SECONDS = 1.0
_STOP_SECONDS = 5.0
_VISIBLE_SECONDS = 90.0  # NFS may show a new file this late

_GONE = "The Dask scheduler is gone. What was committed is kept: run again to go on."


@dataclass
class _Task:
    """The clips that a worker has."""

    number: int
    clips: tuple[PlannedClip, ...]
    num_deaths: int  # of workers that had these very clips
    future: "Future[Result]"
    heard: float  # when it last made progress
    done: tuple[int, int, int] = (0, 0, 0)  # clips, frames and bytes that `on_progress` was told


class WorkerPool:
    """One extraction over the workers of a client: each is being checked, idle, busy, or refused."""

    def __init__(
        self,
        client: Client,
        context: TaskContext,
        planned: Sequence[PlannedClip],
        journal: Journal,
        on_progress: OnWork,
    ) -> None:
        self._client = client
        self._context = context
        self._planned = planned
        self._journal = journal
        self._on_progress = on_progress
        self._forward_digest = context.targets[0].contract.forward_digest()
        self._records_before = [self._record_paths(target) for target in context.targets]
        self._chunks = Chunks(planned, seconds=context.machine.commit_seconds)
        self._checking: dict[str, Future[str | None]] = {}
        self._idle: set[str] = set()
        self._running: dict[str, _Task] = {}
        self._stalled: set[str] = set()  # told to end
        self._refused: dict[str, str] = {}  # why
        self._num_tasks = 0
        self.started = math.nan  # when the first task was given out
        self._most_workers = 0  # that were busy at once
        self._polled = -math.inf
        self._events: queue.SimpleQueue[Future[Any] | list[int]] = queue.SimpleQueue()
        self._result = Result()

    def work(self) -> Result:
        """Have all planned clips computed. Raises as `compute_on_workers` says."""
        self._client.subscribe_topic(self._context.name, lambda event: self._events.put(event[1]))
        try:
            while self._chunks or self._running:
                self._follow_workers()
                self._submit()
                self._handle_events()
        except BaseException:
            self._stop()
            raise
        self._await_records()
        for lane in self._result.lanes.values():
            lane.num_threads *= self._most_workers
        return self._result

    def _follow_workers(self) -> None:
        """Have new workers checked; take back the clips of those that are gone or stall."""
        if time.monotonic() - self._polled < _POLL_SECONDS:
            return
        self._polled = time.monotonic()
        if self._client.status != "running":
            raise PipelineError(_GONE)
        live = set(self._client.scheduler_info()["workers"])
        known = {*self._checking, *self._idle, *self._running, *self._stalled, *self._refused}
        if not live and known:
            log.warning("No Dask worker is left: waiting for others.")
        for address in live - known:
            self._checking[address] = self._call(address, dask_worker.why_refused, self._context)
        for address in known - live:
            self._checking.pop(address, None)
            self._refused.pop(address, None)
            self._stalled.discard(address)
            self._idle.discard(address)
            if address in self._running:
                self._lose(address, stalled=False)
        limit = self._context.machine.stall_seconds
        for address in [a for a, task in self._running.items() if self._polled - task.heard > limit]:
            self._stalled.add(address)
            self._lose(address, stalled=True)
            self._client.run(dask_worker.kill, workers=[address], nanny=True, on_error="ignore")
        if live and live <= self._refused.keys():
            reasons = "".join(f"\n  {reason}" for reason in self._refused.values())
            raise ConfigError(f"No Dask worker can take part:{reasons}")

    def _submit(self) -> None:
        while self._idle and self._chunks:
            clips, num_deaths = self._chunks.next(num_workers=len(self._idle) + len(self._running))
            address = self._idle.pop()
            if not self._num_tasks:
                self.started = time.monotonic()
            self._num_tasks += 1
            future = self._call(address, dask_worker.compute_chunk, self._context, self._num_tasks, clips)
            self._running[address] = _Task(self._num_tasks, clips, num_deaths, future, time.monotonic())
            self._most_workers = max(self._most_workers, len(self._running))

    def _call(self, address: str, function: Callable[..., Any], *arguments: object) -> "Future[Any]":
        future = self._client.submit(function, *arguments, workers=[address], pure=False)
        future.add_done_callback(self._events.put)
        return future

    def _handle_events(self) -> None:
        """Wait for an event, or until it is time to look after the workers; then take all there are."""
        with contextlib.suppress(queue.Empty):
            event = self._events.get(timeout=_POLL_SECONDS)
            while True:
                if isinstance(event, Future):
                    self._end(event)
                else:
                    for task in self._running.values():
                        if task.number == event[0]:
                            self._advance(task, event[1], event[2], event[3])
                event = self._events.get_nowait()

    def _end(self, future: "Future[Any]") -> None:
        """Handle the end of a check or a task; one that was given up is ignored."""
        for address in [a for a, check in self._checking.items() if check is future]:
            del self._checking[address]
            self._judge(address, future)
        for address in [a for a, task in self._running.items() if task.future is future]:
            self._close(address, future)

    def _judge(self, address: str, check: "Future[str | None]") -> None:
        if check.cancelled():
            return
        error = check.exception()
        reason = f"{address}: {error!r}" if error else check.result()
        if reason is None:
            self._idle.add(address)
        else:
            self._refused[address] = reason
            log.warning("A Dask worker can't take part: %s", reason)

    def _close(self, address: str, future: "Future[Result]") -> None:
        if future.cancelled():  # not by this client, which forgets a task first
            raise PipelineError(_GONE)
        error = future.exception()
        if isinstance(error, KilledWorker):
            self._lose(address, stalled=False)
            return
        task = self._running.pop(address)
        self._idle.add(address)
        if error:
            raise error
        part = future.result()
        self._advance(task, len(task.clips), part.num_frames, part.num_bytes)
        self._chunks.learn(part)
        self._result.add(part)

    def _lose(self, address: str, *, stalled: bool) -> None:
        """Give up a worker. What it had not committed is computed again, in halves, at last clip by clip."""
        task = self._running.pop(address)
        self._client.cancel(task.future)
        self._advance(task, 0, 0, 0)
        clips = self._missing(task.clips)
        num_done = len(task.clips) - len(clips)
        self._on_progress(num_done, 0, 0)
        self._result.num_clips += num_done
        what = "stalled" if stalled else "died"
        log.warning(
            "Dask worker %s %s; %d of its %d clips are kept.", address, what, num_done, len(task.clips)
        )
        if len(clips) > 1:
            half = len(clips) // 2
            self._chunks.again(clips[:half], 0)
            self._chunks.again(clips[half:], 0)
        elif clips and task.num_deaths + 1 < DEATHS_ALONE:
            self._chunks.again(clips, task.num_deaths + 1)
        elif clips:
            self._set_aside(
                clips[0], f"{DEATHS_ALONE} Dask workers {what} while they had this clip alone.", stalled
            )

    def _set_aside(self, planned: PlannedClip, reason: str, may_pass: bool) -> None:
        clip = planned.clip
        if may_pass:
            self._result.failed[clip.clip_id] = reason
            log.error("Clip %s could not be computed: %s", clip.clip_id, reason)
        else:
            quarantined = Quarantined(clip.clip_id, "|".join(clip.sources), reason, num_recovered=0)
            self._journal.quarantine(self._forward_digest, planned.key, quarantined)
            self._result.num_quarantined += 1
            log.warning("Clip %s is quarantined: %s", clip.clip_id, reason)
        self._on_progress(1, 0, 0)

    def _advance(self, task: _Task, *done: int) -> None:
        """Tell `on_progress` how far a task is; a task may go back to its start."""
        new = [now - before for now, before in zip(done, task.done, strict=True)]
        task.done = (done[0], done[1], done[2])
        task.heard = time.monotonic()
        self._on_progress(*new)

    def _stop(self) -> None:
        """Have the workers commit what is complete, as far as they can in a few seconds."""
        futures = [task.future for task in self._running.values()]
        with contextlib.suppress(OSError):  # the scheduler may be what has failed
            self._client.run(
                dask_worker.stop, self._context.name, workers=list(self._running), on_error="ignore"
            )
            deadline = time.monotonic() + _STOP_SECONDS
            for future in futures:
                with contextlib.suppress(TimeoutError):
                    future.exception(timeout=max(0.0, deadline - time.monotonic()))
            self._client.cancel(futures)

    def _record_paths(self, target: Target) -> set[Path]:
        return set(self._journal.directory(target.contract, target.layout).glob(f"*{RECORD_SUFFIX}"))

    def _missing(self, clips: Sequence[PlannedClip]) -> tuple[PlannedClip, ...]:
        """The clips that were not committed since the start, for all targets that can store them."""
        stored = {
            target.contract.name: stored_keys(map(read_record, self._record_paths(target) - before))
            | self._journal.quarantined(target.contract.digest()).keys()
            for target, before in zip(self._context.targets, self._records_before, strict=True)
        }
        return tuple(clip for clip in clips if not all(clip.key in stored[name] for name in clip.targets))

    def _await_records(self) -> None:
        """Wait until this machine sees what the workers have written."""
        deadline = time.monotonic() + _VISIBLE_SECONDS
        rejected = self._journal.quarantined(self._forward_digest)
        failed = self._result.failed
        awaited: Sequence[PlannedClip] = [
            clip for clip in self._planned if clip.key not in rejected and clip.clip.clip_id not in failed
        ]
        while awaited := self._missing(awaited):
            if time.monotonic() > deadline:
                raise StoreError(
                    f"Workers have computed {len(awaited)} clips, e.g. {awaited[0].clip.clip_id!r}, which"
                    f" {self._context.journal} does not show here. Check its filesystem, then run again."
                )
            time.sleep(_POLL_SECONDS)
