"""The last lane: threads that append finished rows to shards and close clips."""

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from pipeline.contract import FrameView
from pipeline.errors import DecodeError, InputChangedError, error_text
from pipeline.extraction.compute import Computed
from pipeline.extraction.decode import ClipEnd
from pipeline.extraction.lanes import ByteQueue, Lanes
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from pipeline.extraction.targets import Target
from pipeline.store import ClipSource, Journal, Quarantined, ShardWriter, committing, why_unfit
from pipeline.system.memory import is_out_of_memory
from pipeline.system.supervisor import Notes

log = logging.getLogger(__name__)


OnWork = Callable[[int, int, int], None]  # clips, frames and bytes finished since the last call

_AHEAD_BYTES = 128 << 20  # rows that may wait; what waits is still written when a run is interrupted


class Writers:
    """The writer threads, each with shards of its own: one file takes one write at a time.

    A clip goes to one writer wholly, so that its rows stay in order. When the block ends, by an error or an
    interrupt, too, what waits is written and complete clips are committed. The first error of a writer ends
    them all and is raised in the caller.
    """

    def __init__(
        self,
        shards: Sequence[Mapping[str, ShardWriter]],
        targets: Sequence[Target],
        journal: Journal,
        result: Result,
        on_progress: OnWork,
        notes: Notes,
    ) -> None:
        """`shards` has the shard writers of each writer, by the target's name."""
        one_at_a_time = threading.Lock()

        def on_work(num_clips: int, num_frames: int, num_bytes: int) -> None:
            with one_at_a_time:
                on_progress(num_clips, num_frames, num_bytes)

        self._writers = [
            Writer(
                own,
                targets,
                journal,
                result.lanes,
                on_progress=on_work,
                notes=notes,
                ahead_bytes=_AHEAD_BYTES // len(shards),
            )
            for own in shards
        ]
        self._result = result
        self._writer_of: dict[bytes, Writer] = {}
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, args=(writer,), name=f"write-{number}", daemon=True)
            for number, writer in enumerate(self._writers)
        ]

    def __enter__(self) -> "Writers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._close()
        try:
            self._join()
        finally:  # after an interrupt, too
            self._join()
        for writer in self._writers:
            self._result.add(writer.result)
        if self._errors and kind is None:
            raise self._errors[0]

    def put(self, items: Sequence[Computed | ClipEnd]) -> None:
        """Hand items over, in order; waits while too much is waiting. Raises what writing raised."""
        for item in items:
            key = item.clip.key if isinstance(item, ClipEnd) else item.segment.clip.key
            writer = self._writer_of.pop(key, None) or min(self._writers, key=lambda each: each.num_bytes)
            if isinstance(item, Computed):
                self._writer_of[key] = writer
            if not writer.put(item) and self._errors:
                raise self._errors[0]

    def _work(self, writer: "Writer") -> None:
        try:
            writer.work()
        except BaseException as error:
            self._errors.append(error)
            self._close()

    def _close(self) -> None:
        for writer in self._writers:
            writer.close()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()


class Writer:
    """Appends the finished rows of its clips to shards, and closes the clips."""

    def __init__(
        self,
        shards: Mapping[str, ShardWriter],
        targets: Sequence[Target],
        journal: Journal,
        lanes: Lanes,
        *,
        on_progress: OnWork,
        notes: Notes,
        ahead_bytes: int,
    ) -> None:
        self.result = Result()  # of its clips
        self.num_bytes = 0  # that it was given
        self._shards = shards
        self._contracts = {target.contract.name: target.contract for target in targets}
        self._journal = journal
        self._forward_digest = targets[0].contract.forward_digest()
        self._on_progress = on_progress
        self._notes = notes
        self._lane = lanes["write"]
        self._queue: ByteQueue[Computed | ClipEnd] = ByteQueue(
            ahead_bytes, producer=lanes["compute"], consumer=self._lane
        )
        # The latest segment of each clip's views: what follows tells whether it is the last.
        self._held: dict[bytes, dict[FrameView, Computed]] = defaultdict(dict)
        self._num_frames: Counter[bytes] = Counter()
        self._unfit: dict[bytes, dict[str, str]] = defaultdict(dict)  # why a clip's target can't be stored

    def put(self, item: Computed | ClipEnd) -> bool:
        """Hand an item over; waits while too much is waiting. False after `close`."""
        size_bytes = _size_bytes(item) if isinstance(item, Computed) else 0
        self.num_bytes += size_bytes
        return self._queue.put(item, size_bytes=size_bytes)

    def close(self) -> None:
        """Take no more items."""
        self._queue.close()

    def work(self) -> None:
        """Write until closed, then commit the clips that are complete."""
        with committing(*self._shards.values()):
            while (item := self._queue.get()) is not None:
                with self._lane.busy():
                    if isinstance(item, ClipEnd):
                        self._end(item)
                    else:
                        self._hold(item)

    def _hold(self, item: Computed) -> None:
        key = item.segment.clip.key
        self._check(item)
        held = self._held[key]
        if before := held.get(item.segment.view):
            self._append(before, final=False)
        held[item.segment.view] = item
        num_frames, num_bytes = len(item.segment.frame_seconds), _size_bytes(item)
        self._num_frames[key] += num_frames
        self.result.num_bytes += num_bytes
        self._on_progress(0, num_frames, num_bytes)

    def _check(self, item: Computed) -> None:
        """Once a value of a clip's target can't be stored, nothing of that target is stored for the clip."""
        segment = item.segment
        unfit = self._unfit[segment.clip.key]
        for name, peaks in item.outputs.peaks.items():
            reason = why_unfit(peaks, segment.frame_seconds, self._contracts[name])
            if reason and name not in unfit:
                unfit[name] = reason
                self._shards[name].drop(_source(segment.clip))

    def _append(self, item: Computed, *, final: bool) -> None:
        segment = item.segment
        for name, rows in item.outputs.rows.items():
            if name not in self._unfit[segment.clip.key]:
                self._shards[name].append(_source(segment.clip), rows, segment.frame_seconds, final=final)

    def _end(self, end: ClipEnd) -> None:
        clip = end.clip
        held = self._held.pop(clip.key, {}).values()
        error = end.error
        num_frames = self._num_frames.pop(clip.key, 0)
        if not held:
            error = error or DecodeError(f"{clip.clip.sources[0]}: no frame in the clip's time range.")
        elif clip.keep_damaged and isinstance(error, DecodeError):
            error = None
        if held and error is None:
            for item in held:
                self._append(item, final=True)
            if len(self._unfit[clip.key]) < len(clip.targets):
                self.result.num_clips += 1
                self.result.num_frames += num_frames
            self._set_aside(clip)
        elif error is not None:
            for name in clip.targets:
                self._shards[name].drop(_source(clip))
            self._fail(clip, error)
        self._unfit.pop(clip.key, None)
        self._notes.done(clip.key)
        self._on_progress(1, 0, 0)

    def _set_aside(self, clip: PlannedClip) -> None:
        """Quarantine the clip for the contracts that can't store it; another dtype or pooling may."""
        source = _source(clip)
        for name, reason in self._unfit[clip.key].items():
            quarantined = Quarantined(source.clip_id, source.source, reason, num_recovered=0)
            self._journal.quarantine(self._contracts[name].digest(), clip.key, quarantined)
            log.warning("Clip %s is quarantined: %s", source.clip_id, reason)
        self.result.num_quarantined += bool(self._unfit[clip.key])

    def _fail(self, clip: PlannedClip, error: Exception) -> None:
        clip_id, source = clip.clip.clip_id, "|".join(clip.clip.sources)
        if isinstance(error, DecodeError):
            num_recovered = getattr(error, "num_recovered", 0)
            quarantined = Quarantined(clip_id, source, str(error), num_recovered)
            self._journal.quarantine(self._forward_digest, clip.key, quarantined)
            self.result.num_quarantined += 1
            log.warning("Clip %s is quarantined: %s", clip_id, error)
        elif isinstance(error, OSError | TimeoutError | InputChangedError) or is_out_of_memory(error):
            reason = "out of memory" if is_out_of_memory(error) else error_text(error)
            self.result.failed[clip_id] = reason
            log.error("Clip %s could not be read: %s", clip_id, reason)
        else:
            raise error


def _source(clip: PlannedClip) -> ClipSource:
    return ClipSource(clip.key, clip.clip.clip_id, "|".join(clip.clip.sources))


def _size_bytes(item: Computed) -> int:
    return sum(rows.nbytes for rows in item.outputs.rows.values())
