"""Tiny videos in many threads: what a frame and an opened file cost beside the decoding itself."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.corpora import copy_video, encode_grey
from benchmarks.report import Row, seconds_of
from benchmarks.writers import in_threads
from pipeline.contract import Preprocessing
from pipeline.extraction.decode import Piece, decoding
from pipeline.extraction.lanes import make_lanes
from pipeline.extraction.plan import PlannedClip
from pipeline.frames.open_video import opened_video
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.system.supervisor import Notes

SIDE = 64  # pixels: decoding such a frame takes some 15 µs
FPS = 25
LONG_SECONDS, SHORT_SECONDS = 60, 0.64  # 1500 frames and 16
CLIPS_A_THREAD = 40  # of the short ones


def tiny_rates(folder: Path, *, num_threads: Sequence[int]) -> list[Row]:
    """The decoding lane on one long clip a thread and on many short ones, and opening these alone.

    `opening_share` is the time of opening the short clips, up to the first frame, relative to decoding them
    with as many threads.
    """
    most = max(num_threads)
    long = encode_grey(folder / "long.mp4", seconds=LONG_SECONDS, side=SIDE)
    short = encode_grey(folder / "short.mp4", seconds=SHORT_SECONDS, side=SIDE)
    long_clips = copy_video(long, folder / "long", num_clips=most)
    short_clips = copy_video(short, folder / "short", num_clips=CLIPS_A_THREAD * most)
    paths = [folder / "short" / clip.sources[0] for clip in short_clips]
    rows = []
    for count in num_threads:
        num_long, num_short = LONG_SECONDS * FPS * count, CLIPS_A_THREAD * count
        long_seconds, cpu_seconds = timed(partial(decode, folder / "long", long_clips[:count], count))
        short_seconds, _ = timed(partial(decode, folder / "short", short_clips[:num_short], count))
        share = partial(open_share, paths[:num_short], count)
        open_seconds, _ = timed(partial(in_threads, share, count))
        rows.append(
            {
                "threads": count,
                "frames_per_s": num_long / long_seconds,
                "cpu_us_a_frame": cpu_seconds / num_long * 1e6,
                "short_clips_per_s": num_short / short_seconds,
                "opened_per_s": num_short / open_seconds,
                "opening_share": open_seconds / short_seconds,
            }
        )
    return rows


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds that pass, and seconds of all cores that this process takes meanwhile."""
    started = time.process_time()
    seconds = seconds_of(work)
    return seconds, time.process_time() - started


def decode(root: Path, clips: Sequence[Clip], num_threads: int) -> None:
    with decoding(
        [PlannedClip(clip, clip.clip_id.encode(), "new", ("layer4",)) for clip in clips],
        root=root,
        config=ExtractConfig(preprocessing=Preprocessing()),
        lanes=make_lanes(num_decoders=num_threads),
        pinned=False,
        notes=Notes(),
    ) as pieces:
        assert sum(isinstance(piece, Piece) for piece in pieces) >= len(clips)


def open_share(paths: Sequence[Path], num_threads: int, number: int) -> None:
    for path in paths[number::num_threads]:
        with opened_video(path, limits=ExtractConfig().limits) as video:
            next(iter(video.frames()))
