"""The first lane: threads that decode clips, a bounded distance ahead."""

import contextlib
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.contract import Sampling
from pipeline.extract.plan import PlannedClip
from pipeline.frames import FrameBatch, read_frames


@dataclass(frozen=True)
class Decoded:
    """A piece of a clip from a decoder thread: frames, or its end (with the error that ended it)."""

    clip: PlannedClip
    frames: FrameBatch | None
    error: Exception | None = None


@contextlib.contextmanager
def decoding(
    planned: Sequence[PlannedClip], *, root: Path, sampling: Sampling, num_threads: int
) -> Iterator[Iterator[Decoded]]:
    """Pieces of the planned clips, decoded by threads that run a bounded distance ahead."""
    pieces: queue.Queue[Decoded | None] = queue.Queue(maxsize=2 * num_threads)
    stop = threading.Event()
    todo = iter(planned)
    todo_lock = threading.Lock()

    def put(piece: Decoded | None) -> None:
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
                put(Decoded(clip, frames))
                if stop.is_set():
                    return
        except Exception as exception:  # handed to the writer, which knows what may pass
            error = exception
        put(Decoded(clip, None, error))

    def work() -> None:
        while not stop.is_set():
            with todo_lock:
                clip = next(todo, None)
            if clip is None:
                break
            decode(clip)
        put(None)

    def drain() -> Iterator[Decoded]:
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
