"""The writers: clips in pieces on several threads, damaged ones among them, and an error in one thread."""

import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DecodeError
from pipeline.extraction import PlannedClip, Result, Target
from pipeline.extraction.compute import Computed, Segment
from pipeline.extraction.decode import ClipEnd
from pipeline.extraction.lanes import make_lanes
from pipeline.extraction.runners import Outputs
from pipeline.extraction.write import OnWork, Writers
from pipeline.store import Journal, stored_clips
from pipeline.system.supervisor import Notes
from tests.support.features import (
    assert_holds,
    clip_maps,
    clip_source,
    frame_times,
    make_contract,
    make_layout,
    make_writer,
    publish_clips,
)
from tests.support.toy import make_clip

CONTRACT = make_contract()
LAYOUT = make_layout(CONTRACT, rows_per_shard=16)
TAP = CONTRACT.tap


def make_writers(journal: Journal, result: Result, *, on_progress: OnWork, num_writers: int) -> Writers:
    shards = [{TAP: make_writer(journal, CONTRACT, LAYOUT)} for _ in range(num_writers)]
    return Writers(shards, [Target(CONTRACT, LAYOUT)], journal, result, on_progress, Notes())


def planned(clip_id: str) -> PlannedClip:
    return PlannedClip(make_clip(clip_id), clip_source(clip_id).key, "new", (TAP,))


def computed(clip_id: str, maps: np.ndarray, times: np.ndarray) -> Computed:
    peaks = np.abs(maps).max(axis=(1, 2, 3)).astype(np.float32)
    return Computed(Segment(planned(clip_id), times), Outputs({TAP: maps}, {TAP: peaks}))


def pieces(clip_id: str, num_frames: int, error: Exception | None = None) -> list[Computed | ClipEnd]:
    """A clip in pieces of five frames, and its end."""
    maps, times = clip_maps(clip_id, num_frames), frame_times(num_frames)
    parts = [slice(first, first + 5) for first in range(0, num_frames, 5)]
    return [*(computed(clip_id, maps[part], times[part]) for part in parts), ClipEnd(planned(clip_id), error)]


@pytest.mark.parametrize("num_writers", [1, 3])
def test_clips_in_mixed_pieces_are_stored_whole_by_any_number_of_writers(
    tmp_path: Path, num_writers: int
) -> None:
    clips: Mapping[str, int] = {f"clip{number}": 1 + 7 * number for number in range(8)}
    told: list[tuple[int, int, int]] = []
    threads: set[str] = set()
    busy = threading.Lock()

    def tell(*done: int) -> None:
        assert busy.acquire(blocking=False), "two threads at once"
        told.append(done)  # type: ignore[arg-type]
        threads.add(threading.current_thread().name)
        busy.release()

    journal = Journal(tmp_path / "journal")
    result = Result(lanes=make_lanes(num_decoders=1, num_writers=num_writers))
    queues = [pieces(clip_id, num_frames) for clip_id, num_frames in clips.items()]
    queues.append(pieces("damaged", 12, DecodeError("damaged")))
    with make_writers(journal, result, on_progress=tell, num_writers=num_writers) as writers:
        while queues := [queue for queue in queues if queue]:
            for queue in queues:
                writers.put([queue.pop(0)])
    assert threads == {f"write-{number}" for number in range(num_writers)}
    assert (result.num_clips, result.num_frames, result.num_quarantined) == (8, sum(clips.values()), 1)
    num_frames = sum(clips.values()) + 12
    assert tuple(map(sum, zip(*told, strict=True))) == (9, num_frames, num_frames * LAYOUT.row_bytes)
    assert list(journal.quarantined(CONTRACT.forward_digest())) == [clip_source("damaged").key]
    assert_holds(publish_clips(journal, CONTRACT, LAYOUT, list(clips), tmp_path / "features"), clips)


def test_an_error_in_one_writer_is_raised_and_all_complete_clips_are_kept(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    lanes = make_lanes(num_decoders=1, num_writers=2)
    misfit = computed("misfit", np.ones((1, 9, 9, 9), np.float16), frame_times(1))

    def write() -> None:
        with make_writers(
            journal, Result(lanes=lanes), on_progress=lambda *_: None, num_writers=2
        ) as writers:
            writers.put(pieces("first", 6))
            writers.put(pieces("second", 5))
            writers.put([misfit, ClipEnd(planned("misfit"), None)])

    with pytest.raises(ValueError, match="do not fit"):
        write()
    kept = stored_clips(journal.records(CONTRACT, LAYOUT).values())
    assert set(kept) == {clip_source("first").key, clip_source("second").key}
