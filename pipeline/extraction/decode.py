"""The first lane: threads that decode clips, a limited amount ahead."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import DecodeError, InputChangedError
from pipeline.extraction.lanes import ByteQueue, Lanes
from pipeline.extraction.plan import PlannedClip, clip_key, damaged_key
from pipeline.frames import clip_range, on_packet, read_frames
from pipeline.manifest.recorded import scan_sources
from pipeline.settings.extract import ExtractConfig
from pipeline.store import DigestCache
from pipeline.system.supervisor import Notes

log = logging.getLogger(__name__)

_AHEAD_BYTES = 256 << 20  # decoded frames that may wait
_AHEAD_PIECES = 64  # pieces that may wait, however small
_STOP_SECONDS = 2.0  # a decoder that does not end in this time is left behind
_NOTE_SECONDS = 0.5


class _StoppedError(Exception):
    """Ends the decoding of a clip when the run is over."""


@dataclass(frozen=True)
class Piece:
    """Consecutive frames of a clip."""

    clip: PlannedClip
    pixels: Tensor  # (T, H, W, 3) uint8 on the host
    frame_seconds: np.ndarray  # (T,)


@dataclass(frozen=True)
class ClipEnd:
    """The end of a clip, with the error that ended it early."""

    clip: PlannedClip
    error: Exception | None


@contextlib.contextmanager
def decoding(
    planned: Sequence[PlannedClip],
    *,
    root: Path,
    config: ExtractConfig,
    lanes: Lanes,
    pinned: bool,
    notes: Notes,
    digests: DigestCache | None = None,
) -> Iterator[Iterator[Piece | ClipEnd]]:
    """In the block, the lane's threads decode the planned clips, and an iterator gives pieces and ends.

    The pieces of a clip come in order and then its end; those of different clips are mixed. `pinned` puts
    pixels in pinned memory, from which a GPU copies while it computes. With `digests`, a clip whose sources
    are not those that were planned ends with InputChangedError.
    """
    lane = lanes["decode"]
    largest = min(config.views, key=lambda view: view.scale).zoomed(config.known_preprocessing)
    ahead: ByteQueue[Piece | ClipEnd] = ByteQueue(_AHEAD_BYTES, producer=lane, consumer=lanes["compute"])
    todo = iter(planned)
    lock = threading.Lock()
    num_running = lane.num_threads

    def decode(clip: PlannedClip) -> None:
        noted_at = time.monotonic()

        def go_on() -> None:
            nonlocal noted_at
            if stopped.is_set():
                raise _StoppedError
            if time.monotonic() - noted_at > _NOTE_SECONDS:
                notes.decoding(clip.key)
                noted_at = time.monotonic()

        on_packet.set(go_on)  # in this thread; minutes may pass from one wanted frame to the next
        error: Exception | None = None
        try:
            frames = read_frames(
                **clip_range(clip.clip, root=root),
                sampling=config.sampling,
                limits=config.limits,
                preprocessing=largest,
                stack=_stack_pinned if pinned else np.stack,
            )
            while True:
                notes.decoding(clip.key)
                with lane.busy():
                    batch = next(frames, None)
                    if batch is None:
                        break
                    piece = Piece(clip, torch.from_numpy(batch.pixels), batch.frame_seconds)
                notes.waiting(clip.key)
                size_bytes = max(batch.pixels.nbytes, _AHEAD_BYTES // _AHEAD_PIECES)
                if not ahead.put(piece, size_bytes=size_bytes):
                    return
        except Exception as exception:  # handed to the writer, which knows what may pass
            error = exception
        if digests and (error is None or isinstance(error, DecodeError)) and _is_changed(clip, root, digests):
            names = ", ".join(clip.clip.sources)
            error = InputChangedError(f"{names} changed before it was decoded to the end.")
        notes.waiting(clip.key)
        ahead.put(ClipEnd(clip, error), size_bytes=0)

    def work() -> None:
        nonlocal num_running
        try:
            while not stopped.is_set():
                with lock:
                    clip = next(todo, None)
                if clip is None:
                    break
                decode(clip)
        finally:
            with lock:
                num_running -= 1
                if not num_running:
                    ahead.close()

    stopped = threading.Event()
    threads = [threading.Thread(target=work, name=f"decode-{i}", daemon=True) for i in range(num_running)]
    for thread in threads:
        thread.start()
    try:
        yield iter(ahead.get, None)
    finally:
        stopped.set()
        ahead.close()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _is_changed(planned: PlannedClip, root: Path, digests: DigestCache) -> bool:
    """Whether the clip's sources have another content than when it was planned. Takes a stat of each file."""
    try:
        key = clip_key(planned.clip, scan_sources(planned.clip.sources, root=root, digests=digests).contents)
    except (KeyError, OSError):  # they are no longer there
        return True
    return planned.key != (damaged_key(key) if planned.keep_damaged else key)


def _stack_pinned(frames: Sequence[np.ndarray]) -> np.ndarray:
    """As `np.stack`, in pinned memory, which torch keeps for the next piece."""
    pixels = torch.empty((len(frames), *frames[0].shape), dtype=torch.uint8, pin_memory=True).numpy()
    return np.stack(frames, out=pixels)
