"""The extraction engine: plan, then decode, compute and write side by side, then publish a view.

Decoder threads turn clips into frames; the compute loop, on the calling thread, packs frames of any
clips into batches of one fixed size; a writer thread appends the maps to shards. Bounded queues lie
between them. What is committed to the journal is never computed again.
"""

import contextlib
import csv
import io
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from pipeline.backbone import Backbone, preprocess
from pipeline.contract import FeatureContract, Preprocessing, Sampling
from pipeline.devices import DeviceName
from pipeline.errors import DecodeError
from pipeline.files import combined_digest
from pipeline.frames import FrameBatch, read_frames, source_files
from pipeline.manifest import Clip
from pipeline.store import (
    ClipSource,
    DigestCache,
    Journal,
    Layout,
    Quarantined,
    ShardWriter,
    StoreConfig,
    TapView,
    committing,
    publish,
    stored_clips,
    stored_keys,
)

log = logging.getLogger(__name__)


class ExtractConfig(BaseModel):
    """Which features, and how they are computed and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    taps: Annotated[tuple[str, ...], Field(min_length=1)] = ("layer4",)  # layers whose maps are kept
    sampling: Sampling = Sampling()  # all | every: n | fps: x | count: n
    preprocessing: Preprocessing = Preprocessing()
    pooling: Literal["none", "avg", "max"] = "none"  # over H and W, before storing
    dtype: Literal["float16", "float32"] = "float16"  # as stored
    device: DeviceName = "auto"
    batch_size: Annotated[int, Field(ge=1)] | None = None  # null: 256 on a GPU, 32 on a CPU
    num_decoders: Annotated[int, Field(ge=1)] | None = None  # threads; null: by the number of cores
    store: StoreConfig = StoreConfig()


@dataclass(frozen=True)
class PlannedClip:
    """A clip to compute, why, and for which taps."""

    clip: Clip
    key: bytes
    reason: str
    taps: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What a run has to do. `keys` has every clip that could be read, by clip id."""

    keys: Mapping[str, bytes]
    to_extract: tuple[PlannedClip, ...]
    num_unchanged: int
    num_quarantined: int  # known from before
    unreadable: Mapping[str, str]  # clip id -> the error that reading its source gave

    def summary(self) -> str:
        """E.g. `1 new, 320 unchanged`."""
        reasons = Counter(clip.reason for clip in self.to_extract)
        parts = [f"{count} {reason}" for reason, count in sorted(reasons.items())]
        parts.append(f"{self.num_unchanged} unchanged")
        if self.num_quarantined:
            parts.append(f"{self.num_quarantined} quarantined before")
        if self.unreadable:
            parts.append(f"{len(self.unreadable)} unreadable")
        return ", ".join(parts)


@dataclass
class Result:
    """What a run did."""

    num_frames: int = 0
    num_clips: int = 0
    num_batches: int = 0
    seconds: float = 0.0
    num_quarantined: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # what may pass: clip id -> error


@dataclass(frozen=True)
class Target:
    """One tap's features: their contract, and the layout that they are stored in."""

    contract: FeatureContract
    layout: Layout


def plan(
    clips: Sequence[Clip], *, root: Path, targets: Sequence[Target], journal: Journal, digests: DigestCache
) -> Plan:
    """Compare the manifest's clips with the journal: what must be computed, and why."""
    forward_digest = targets[0].contract.forward_digest()
    stored = {t.contract.tap: stored_keys(journal.records(t.contract, t.layout).values()) for t in targets}
    rejected = journal.quarantined(forward_digest)
    keys: dict[str, bytes] = {}
    unreadable: dict[str, str] = {}
    missing: dict[bytes, tuple[Clip, tuple[str, ...]]] = {}
    num_unchanged = num_quarantined = 0
    for clip in clips:
        try:
            key = clip_key(clip, root=root, digests=digests)
        except OSError as error:
            unreadable[clip.clip_id] = str(error)
            continue
        keys[clip.clip_id] = key
        taps = [tap for tap, known in stored.items() if key not in known]
        if not taps:
            num_unchanged += 1
        elif key in rejected:
            num_quarantined += 1
        else:
            missing.setdefault(key, (clip, tuple(taps)))
    digests.save()
    reason = _reasons(journal, targets) if missing else None
    to_extract = tuple(
        PlannedClip(clip, key, reason(clip.clip_id, taps) if reason else "new", taps)
        for key, (clip, taps) in missing.items()
    )
    return Plan(keys, to_extract, num_unchanged, num_quarantined, unreadable)


def clip_key(clip: Clip, *, root: Path, digests: DigestCache) -> bytes:
    """16 bytes that change when the clip's source content or time range does.

    Raises OSError when a source can't be read.
    """
    # A string and one stat a source: a million clips take seconds.
    contents = [digest for source in clip.sources for digest in _contents(f"{root}/{source}", digests)]
    return combined_digest(contents, extra=f"{clip.start_seconds}:{clip.end_seconds}:{clip.image_fps}")


def _contents(source: str, digests: DigestCache) -> list[bytes]:
    """The digest of a file, or those of a folder's images."""
    try:
        return [digests.digest(source)]
    except IsADirectoryError:
        return [digests.digest(file) for file in source_files(Path(source))]


def _reasons(journal: Journal, targets: Sequence[Target]) -> Callable[[str, tuple[str, ...]], str]:
    """Why a clip's features are missing, judged by what the journal has under other keys and contracts."""
    same = [journal.clip_keys(target.contract) for target in targets]
    contracts = journal.contracts()
    known_digests = {target.contract.digest() for target in targets}
    others = [other for other in contracts if other.digest() not in known_digests][:8]
    other_clips = [set(journal.clip_keys(other)) for other in others]

    def reason(clip_id: str, taps: tuple[str, ...]) -> str:
        if any(clip_id in keys for keys in same):
            here = [keys for target, keys in zip(targets, same, strict=True) if target.contract.tap in taps]
            if any(clip_id in keys for keys in here):
                return "source changed"
            return f"tap added ({', '.join(taps)})"
        contract = targets[0].contract
        for other, clips in zip(others, other_clips, strict=True):
            if clip_id in clips:
                fields = {k: v for k, v in other.differences(contract).items() if k != "tap"}
                if not fields:
                    return f"tap added ({', '.join(taps)})"
                return "; ".join(f"{name} changed: {a} -> {b}" for name, (a, b) in fields.items())
        return "new"

    return reason


@dataclass(frozen=True)
class _Decoded:
    """A piece of a clip from a decoder thread: frames, or its end (with the error that ended it)."""

    clip: PlannedClip
    frames: FrameBatch | None
    error: Exception | None = None


@dataclass(frozen=True)
class _Segment:
    """Consecutive frames of one clip inside a batch; `rows` by tap are added after the forward pass."""

    clip: PlannedClip
    frame_seconds: np.ndarray[Any, Any]


@dataclass(frozen=True)
class _ClipEnd:
    clip: PlannedClip
    error: Exception | None


_Written = tuple[_Segment, dict[str, np.ndarray[Any, Any]]] | _ClipEnd


def run(
    planned: Sequence[PlannedClip],
    *,
    root: Path,
    targets: Sequence[Target],
    backbone: Backbone,
    device: torch.device,
    journal: Journal,
    config: ExtractConfig,
    on_progress: Callable[[int, int], None] = lambda _clips, _frames: None,
) -> Result:
    """Compute the planned clips into the journal.

    `on_progress(clips, frames)` is called with what was finished since the last call. The caller
    holds the journal's lock of the forward contract.
    """
    result = Result()
    started = time.monotonic()
    writers = {
        t.contract.tap: ShardWriter(
            journal.directory(t.contract, t.layout),
            contract=t.contract,
            layout=t.layout,
            commit_seconds=config.store.commit_seconds,
        )
        for t in targets
    }
    num_decoders = config.num_decoders or default_num_decoders(device)
    batch_size = config.batch_size or (256 if device.type == "cuda" else 32)
    compute = _Compute(backbone, targets, batch_size=batch_size, preprocessing=config.preprocessing)
    with (
        committing(*writers.values()),
        _Writer(writers, journal, targets[0].contract.forward_digest(), result, on_progress) as writer,
        _decoding(planned, root=root, sampling=config.sampling, num_threads=num_decoders) as decoded,
    ):
        for piece in decoded:
            if piece.frames is None:
                compute.end(_ClipEnd(piece.clip, piece.error))
            else:
                compute.add(piece.clip, piece.frames)
            writer.put(compute.ready())
        compute.flush()
        writer.put(compute.ready())
    result.num_batches = compute.num_batches
    result.seconds = time.monotonic() - started
    return result


def default_num_decoders(device: torch.device) -> int:
    """On a CPU the network wants the cores; beside a GPU all of them may decode."""
    cores = torch.get_num_threads()
    return cores if device.type == "cuda" else max(1, cores // 2)


@contextlib.contextmanager
def _decoding(
    planned: Sequence[PlannedClip], *, root: Path, sampling: Sampling, num_threads: int
) -> Iterator[Iterator[_Decoded]]:
    """Pieces of the planned clips, decoded by threads that run a bounded distance ahead."""
    pieces: queue.Queue[_Decoded | None] = queue.Queue(maxsize=2 * num_threads)
    stop = threading.Event()
    todo = iter(planned)
    todo_lock = threading.Lock()

    def put(piece: _Decoded | None) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                pieces.put(piece, timeout=0.1)
                return

    def decode(clip: PlannedClip) -> None:
        error: Exception | None = None
        try:
            for frames in read_frames(
                [root / source for source in clip.clip.sources],
                sampling=sampling,
                start_seconds=clip.clip.start_seconds,
                end_seconds=clip.clip.end_seconds,
                image_fps=clip.clip.image_fps,
            ):
                put(_Decoded(clip, frames))
                if stop.is_set():
                    return
        except Exception as exception:  # handed to the writer, which knows what may pass
            error = exception
        put(_Decoded(clip, None, error))

    def work() -> None:
        while not stop.is_set():
            with todo_lock:
                clip = next(todo, None)
            if clip is None:
                break
            decode(clip)
        put(None)

    def drain() -> Iterator[_Decoded]:
        running = num_threads
        while running:
            piece = pieces.get()
            if piece is None:
                running -= 1
            else:
                yield piece

    threads = [threading.Thread(target=work, name=f"decode-{i}", daemon=True) for i in range(num_threads)]
    for thread in threads:
        thread.start()
    try:
        yield drain()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


class _Compute:
    """Packs frames of any clips into batches of one fixed size and runs the network on them.

    The last batch is padded: a network sees one shape, and a clip's features are the same bits
    whatever its neighbours are.
    """

    def __init__(
        self, backbone: Backbone, targets: Sequence[Target], *, batch_size: int, preprocessing: Preprocessing
    ) -> None:
        self._backbone = backbone
        self._targets = targets
        self._preprocessing = preprocessing
        height, width = preprocessing.crop_size
        self._batch = torch.zeros((batch_size, 3, height, width), dtype=torch.uint8)
        self._used = 0
        self._waiting: list[_Segment | _ClipEnd] = []
        self._done: list[_Written] = []
        self._failed: set[bytes] = set()
        self.num_batches = 0

    def add(self, clip: PlannedClip, frames: FrameBatch) -> None:
        if clip.key in self._failed:
            return
        try:
            pixels = preprocess(frames.pixels, self._preprocessing)  # (T, 3, H, W) uint8
        except DecodeError as error:
            self._failed.add(clip.key)
            self._waiting.append(_ClipEnd(clip, error))
            return
        seconds = frames.pts_seconds
        while len(pixels):
            count = min(len(pixels), len(self._batch) - self._used)
            self._batch[self._used : self._used + count] = pixels[:count]
            self._waiting.append(_Segment(clip, seconds[:count]))
            self._used += count
            pixels, seconds = pixels[count:], seconds[count:]
            if self._used == len(self._batch):
                self.flush()

    def end(self, end: _ClipEnd) -> None:
        if end.clip.key not in self._failed:
            self._waiting.append(end)
        if not self._used:
            self.flush()

    def flush(self) -> None:
        """Compute what is waiting, padded to a full batch."""
        rows: dict[str, np.ndarray[Any, Any]] = {}
        if self._used:
            self._batch[self._used :] = 0
            maps = self._backbone(self._batch)
            rows = {t.contract.tap: _stored(maps[t.contract.tap], t.contract) for t in self._targets}
            self.num_batches += 1
        start = 0
        for item in self._waiting:
            if isinstance(item, _ClipEnd):
                self._done.append(item)
            else:
                stop = start + len(item.frame_seconds)
                taps = {tap: values[start:stop] for tap, values in rows.items() if tap in item.clip.taps}
                self._done.append((item, taps))
                start = stop
        self._waiting.clear()
        self._used = 0

    def ready(self) -> list[_Written]:
        done, self._done = self._done, []
        return done


def _stored(maps: torch.Tensor, contract: FeatureContract) -> np.ndarray[Any, Any]:
    """(B, C, H, W) float32 -> as stored: pooled, cast, contiguous, on the host."""
    if contract.pooling == "avg":
        maps = maps.mean(dim=(2, 3), keepdim=True)
    elif contract.pooling == "max":
        maps = maps.amax(dim=(2, 3), keepdim=True)
    dtype = getattr(torch, contract.dtype)
    array: np.ndarray[Any, Any] = maps.to(dtype).contiguous().cpu().numpy()
    return array


class _Writer:
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
        self._queue: queue.Queue[list[_Written] | None] = queue.Queue(maxsize=4)
        self._error: BaseException | None = None
        # One segment a clip is held back: only the next one, or the end, tells whether it is the last.
        self._held: dict[bytes, tuple[_Segment, dict[str, np.ndarray[Any, Any]]]] = {}
        self._num_frames: Counter[bytes] = Counter()
        self._thread = threading.Thread(target=self._work, name="write", daemon=True)

    def __enter__(self) -> "_Writer":
        self._thread.start()
        return self

    def __exit__(self, kind: object, value: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error and kind is None:
            raise self._error

    def put(self, items: list[_Written]) -> None:
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

    def _write(self, item: _Written) -> None:
        if isinstance(item, _ClipEnd):
            self._end(item)
            return
        key = item[0].clip.key
        if held := self._held.get(key):
            self._append(*held, final=False)
        self._held[key] = item
        self._num_frames[key] += len(item[0].frame_seconds)
        self._on_progress(0, len(item[0].frame_seconds))

    def _append(self, segment: _Segment, rows: dict[str, np.ndarray[Any, Any]], *, final: bool) -> None:
        for tap, values in rows.items():
            self._writers[tap].append(_source(segment.clip), values, segment.frame_seconds, final=final)

    def _end(self, end: _ClipEnd) -> None:
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


def publish_view(
    keys: Mapping[str, bytes], *, targets: Sequence[Target], journal: Journal, path: Path
) -> dict[str, int]:
    """Publish the view of every clip (key by clip id) that has features; the number of clips by tap.

    The clips that the decoder rejected are listed in `quarantine.csv`.
    """
    views = []
    for target in targets:
        records = journal.records(target.contract, target.layout)
        stored = stored_clips(records.values())
        clips = {clip_id: stored[key] for clip_id, key in keys.items() if key in stored}
        views.append(TapView(target.contract, target.layout, clips, records))
        journal.touch(target.contract)
    rejected = journal.quarantined(targets[0].contract.forward_digest())
    rows = [
        (clip_id, rejected[key].source, rejected[key].reason, rejected[key].num_recovered)
        for clip_id, key in sorted(keys.items())
        if key in rejected
    ]
    publish(journal, views, path, files={"quarantine.csv": _csv(rows)})
    return {view.contract.tap: len(view.clips) for view in views}


def _csv(rows: Sequence[tuple[str, str, str, int]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip_id", "source", "reason", "num_recovered"])
    writer.writerows(rows)
    return buffer.getvalue().encode()
