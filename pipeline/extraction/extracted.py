"""Extracted: the facts of an extraction, as its caller gets them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import PipelineError
from pipeline.extraction.publish import Published
from pipeline.extraction.result import Result
from pipeline.manifest.recorded import Contents

log = logging.getLogger(__name__)

_MAX_LISTED = 20


@dataclass(frozen=True)
class Extracted:
    """What an extraction did and what it published. Clips are named by their ids."""

    num_clips: int  # of the manifest
    clips_by_tap: Mapping[str, int]  # how many are in features/<name>, by name; empty where clips have failed
    left_out: Mapping[str, str]  # clips that lack the features of a tap, a view or all, and why
    kept_damaged: Mapping[str, str]  # clips that are used up to a damage, and which
    failed: Mapping[str, str]  # clips with an error that may pass; while there are any, nothing is published
    contents: Contents  # of the sources whose features these are
    num_computed: int  # clips
    num_frames: int  # computed, once for each view
    num_bytes: int  # of the rows computed, before compression
    seconds: float  # of computing
    setup_seconds: float  # before it: compiling, starting workers
    lanes: Mapping[str, Mapping[str, float]]  # see `Result.lane_report`
    limited_by: str | None  # the busiest lane

    @property
    def frames_per_second(self) -> float | None:
        """None when nothing was computed."""
        return round(self.num_frames / self.seconds, 1) if self.seconds else None

    def check_complete(self) -> None:
        """Raise PipelineError when clips have failed, so that nothing was published."""
        if self.failed:
            raise PipelineError(
                f"{len(self.failed)} clips failed, possibly for a passing reason. The features of the others"
                f" are kept; run again to retry these:\n{_listed(self.failed)}"
            )


def make_extracted(
    result: Result,
    published: Published | None,
    *,
    clip_ids: Sequence[str],
    failed: Mapping[str, str],
    contents: Contents,
) -> Extracted:
    """The facts from what a run did and what was published, if it was."""
    faulty = published.faulty if published else ()
    lanes = result.lane_report()
    return Extracted(
        num_clips=len(clip_ids),
        clips_by_tap=published.num_clips if published else {},
        left_out={clip.clip_id: clip.reason for clip in faulty if clip.policy == "drop"},
        kept_damaged={clip.clip_id: clip.reason for clip in faulty if clip.policy == "keep"},
        failed=failed,
        contents=contents,
        num_computed=result.num_clips,
        num_frames=result.num_frames,
        num_bytes=result.num_bytes,
        seconds=result.seconds,
        setup_seconds=result.setup_seconds,
        lanes=lanes["lanes"],
        limited_by=lanes["limited_by"],
    )


def log_facts(extracted: Extracted, *, features: str) -> None:
    """Log what was computed, published in the folder `features`, and left out."""
    if extracted.num_frames:
        busy = (f"{name} {lane['busy']:.0%}" for name, lane in extracted.lanes.items() if lane["busy"])
        log.info(
            "Computed %d clips, %d frames, %s in %.1f s: %s frames/s, limited by %s (busy: %s).",
            extracted.num_computed,
            extracted.num_frames,
            size_text(extracted.num_bytes),
            extracted.seconds,
            extracted.frames_per_second,
            extracted.limited_by,
            ", ".join(busy),
        )
    for name, count in extracted.clips_by_tap.items():
        log.info("%s/%s: %d of %d clips.", features, name, count, extracted.num_clips)
    if left_out := extracted.left_out:
        log.warning(
            "Left out, of %d clips (%s/quarantine.csv):\n%s",
            extracted.num_clips,
            features,
            _listed(left_out),
        )


def size_text(num_bytes: float) -> str:
    """A size for people, e.g. `39.9 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _listed(clips: Mapping[str, str]) -> str:
    lines = [f"  {clip_id}: {reason}" for clip_id, reason in list(clips.items())[:_MAX_LISTED]]
    if len(clips) > _MAX_LISTED:
        lines.append(f"  ... and {len(clips) - _MAX_LISTED} more")
    return "\n".join(lines)
