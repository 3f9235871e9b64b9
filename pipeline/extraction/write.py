"""The last lane: a thread that appends finished rows to shards and closes clips."""

import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

from pipeline.errors import DecodeError, InputChangedError, error_text
from pipeline.extraction.compute import Computed
from pipeline.extraction.decode import ClipEnd
from pipeline.extraction.lanes import ByteQueue
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from pipeline.extraction.targets import Target
from pipeline.store import ClipSource, Journal, Quarantined, ShardWriter, why_unfit
from pipeline.system.memory import is_out_of_memory
from pipeline.system.supervisor import Notes

log = logging.getLogger(__name__)


OnWork = Callable[[int, int, int], None]  # clips, frames and bytes finished since the last call

_AHEAD_BYTES = 128 << 20  # rows that may wait; what waits is still written when a run is interrupted


class Writer:
    """The writer thread: appends finished rows and closes clips. Its errors are raised in the caller."""

    def __init__(
        self,
        writers: Mapping[str, ShardWriter],
        targets: Sequence[Target],
        journal: Journal,
        result: Result,
        on_progress: OnWork,
        notes: Notes,
    ) -> None:
        self._writers = writers
        self._contracts = {target.contract.tap: target.contract for target in targets}
        self._journal = journal
        self._forward_digest = targets[0].contract.forward_digest()
        self._result = result
        self._on_progress = on_progress
        self._notes = notes
        self._lane = result.lanes["write"]
        self._queue: ByteQueue[Computed | ClipEnd] = ByteQueue(
            _AHEAD_BYTES, producer=result.lanes["compute"], consumer=self._lane
        )
        self._error: BaseException | None = None
        # The latest segment of each clip: what follows tells whether it is the last.
        self._held: dict[bytes, Computed] = {}
        self._num_frames: Counter[bytes] = Counter()
        self._unfit: dict[bytes, dict[str, str]] = defaultdict(dict)  # why a clip's tap can't be stored
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._queue.close()
        self._thread.join()
        if self._error and kind is None:
            raise self._error

    def put(self, items: Sequence[Computed | ClipEnd]) -> None:
        """Hand items over, in order; waits while too much is waiting. Raises what writing raised."""
        for item in items:
            size_bytes = _size_bytes(item) if isinstance(item, Computed) else 0
            if not self._queue.put(item, size_bytes=size_bytes) and self._error:
                raise self._error

    def _work(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                with self._lane.busy():
                    if isinstance(item, ClipEnd):
                        self._end(item)
                    else:
                        self._hold(item)
        except BaseException as error:
            self._error = error
            self._queue.close()

    def _hold(self, item: Computed) -> None:
        key = item.segment.clip.key
        self._check(item)
        if held := self._held.get(key):
            self._append(held, final=False)
        self._held[key] = item
        num_frames, num_bytes = len(item.segment.frame_seconds), _size_bytes(item)
        self._num_frames[key] += num_frames
        self._result.num_bytes += num_bytes
        self._on_progress(0, num_frames, num_bytes)

    def _check(self, item: Computed) -> None:
        """Once a value of a clip's tap can't be stored, nothing of that tap is stored for the clip."""
        segment = item.segment
        unfit = self._unfit[segment.clip.key]
        for tap, peaks in item.outputs.peaks.items():
            reason = why_unfit(peaks, segment.frame_seconds, self._contracts[tap])
            if reason and tap not in unfit:
                unfit[tap] = reason
                self._writers[tap].drop(_source(segment.clip))

    def _append(self, item: Computed, *, final: bool) -> None:
        segment = item.segment
        for tap, rows in item.outputs.rows.items():
            if tap not in self._unfit[segment.clip.key]:
                self._writers[tap].append(_source(segment.clip), rows, segment.frame_seconds, final=final)

    def _end(self, end: ClipEnd) -> None:
        clip = end.clip
        held = self._held.pop(clip.key, None)
        error = end.error
        num_frames = self._num_frames.pop(clip.key, 0)
        if held is None:
            error = error or DecodeError(f"{clip.clip.sources[0]}: no frame in the clip's time range.")
        elif clip.keep_damaged and isinstance(error, DecodeError):
            error = None
        if held is not None and error is None:
            self._append(held, final=True)
            if len(self._unfit[clip.key]) < len(clip.taps):
                self._result.num_clips += 1
                self._result.num_frames += num_frames
            self._set_aside(clip)
        elif error is not None:
            for tap in clip.taps:
                self._writers[tap].drop(_source(clip))
            self._fail(clip, error)
        self._unfit.pop(clip.key, None)
        self._notes.done(clip.key)
        self._on_progress(1, 0, 0)

    def _set_aside(self, clip: PlannedClip) -> None:
        """Quarantine the clip for the contracts that can't store it; another dtype or pooling may."""
        source = _source(clip)
        for tap, reason in self._unfit[clip.key].items():
            quarantined = Quarantined(source.clip_id, source.source, reason, num_recovered=0)
            self._journal.quarantine(self._contracts[tap].digest(), clip.key, quarantined)
            log.warning("Clip %s is quarantined: %s", source.clip_id, reason)
        self._result.num_quarantined += bool(self._unfit[clip.key])

    def _fail(self, clip: PlannedClip, error: Exception) -> None:
        clip_id, source = clip.clip.clip_id, "|".join(clip.clip.sources)
        if isinstance(error, DecodeError):
            num_recovered = getattr(error, "num_recovered", 0)
            quarantined = Quarantined(clip_id, source, str(error), num_recovered)
            self._journal.quarantine(self._forward_digest, clip.key, quarantined)
            self._result.num_quarantined += 1
            log.warning("Clip %s is quarantined: %s", clip_id, error)
        elif isinstance(error, OSError | TimeoutError | InputChangedError) or is_out_of_memory(error):
            reason = "out of memory" if is_out_of_memory(error) else error_text(error)
            self._result.failed[clip_id] = reason
            log.error("Clip %s could not be read: %s", clip_id, reason)
        else:
            raise error


def _source(clip: PlannedClip) -> ClipSource:
    return ClipSource(clip.key, clip.clip.clip_id, "|".join(clip.clip.sources))


def _size_bytes(item: Computed) -> int:
    return sum(rows.nbytes for rows in item.outputs.rows.values())
