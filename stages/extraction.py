"""The work of stage extract, in the process that stages/extract.py supervises."""

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.errors import PipelineError, StoreError
from pipeline.extraction import (
    Plan,
    PlannedClip,
    Published,
    Result,
    damaged_key,
    publish_view,
    run,
)
from pipeline.store import Quarantined, repack
from pipeline.system.files import write_json
from pipeline.system.memory import is_out_of_memory
from pipeline.system.supervisor import Notes, Orders, interrupt_once, read_orders
from stages import console
from stages.adoption import adopt_view
from stages.extract_job import FEATURES, Job, read_job, read_sources, size_text, weights_path

log = logging.getLogger(__name__)

REPORT = Path("metrics/extract.json")

_MAX_LISTED = 20
_REFRESH_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", type=int, required=True)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--retry-quarantined", action="store_true")
    parser.add_argument("--read-sources", action="store_true")
    arguments = parser.parse_args()
    interrupt_once()
    notes, orders = Notes(arguments.notes), read_orders(arguments.orders)
    job = read_job()
    with job.journal.lock(job.forward_digest, on_wait=_say_waiting):
        for target in job.targets:
            job.journal.sweep(target.contract, target.layout)
        first = not orders.num_restarts
        todo = prepare(
            job, retry=arguments.retry_quarantined and first, reread=arguments.read_sources and first
        )
        log.info("Plan:\n%s", todo.summary())
        result, set_aside = compute(job, todo, notes=notes, orders=orders)
        failed = {**todo.unreadable, **set_aside, **result.failed}
        if failed:
            write_report(job, result, num_restarts=orders.num_restarts, failed=failed, published=None)
            raise PipelineError(
                f"{len(failed)} clips could not be read or computed:\n{_listed(failed)}\n"
                "The features of the others are kept. Run the same command to try these again."
            )
        published = publish_view(
            todo.keys,
            targets=job.targets,
            journal=job.journal,
            path=FEATURES,
            damaged=job.config.damaged,
            min_frames=job.config.min_frames,
            max_failed_share=job.config.max_failed_share,
        )
    write_report(job, result, num_restarts=orders.num_restarts, failed={}, published=published)


def prepare(job: Job, *, retry: bool, reread: bool = False) -> Plan:
    """The plan, when all that can be had without computing is in the journal."""
    try:
        read_sources(job, again=reread)
    finally:  # what was read of the sources is not read again
        job.digests.save()
    make_plan = job.plan
    todo = make_plan()
    job.digests.save()
    if retry:
        keys = {key for clip_key in todo.keys.values() for key in (clip_key, damaged_key(clip_key))}
        digests = [job.forward_digest, *(target.contract.digest() for target in job.targets)]
        retried = set[bytes]().union(*(job.journal.forgive(digest, keys) for digest in digests))
        make_plan = partial(job.plan, retried=retried)
        todo = make_plan()
    if todo.to_extract and job.journal.is_read_only:
        raise StoreError(
            f"{len(todo.to_extract)} clips have no features, and the journal {job.journal.path} can't be"
            " written. Keep them elsewhere: FRAMECACHE_JOURNAL=/another/folder takes over what DVC has."
        )
    if todo.to_extract and (num_shards := adopt_view(job.journal, path=FEATURES)):
        log.info("Adopted %d shards of an earlier run from DVC.", num_shards)
        todo = make_plan()
    if todo.to_extract and (num_repacked := repack_missing(job, todo)):
        log.info("Repacked %d clips that were there in another layout or dtype.", num_repacked)
        todo = make_plan()
    return todo


def compute(job: Job, todo: Plan, *, notes: Notes, orders: Orders) -> tuple[Result, dict[str, str]]:
    """Compute what is planned: what was done, and the clips that an earlier process died of, by clip id."""
    set_aside = {}
    planned = []
    for clip in todo.to_extract:
        if (cause := orders.crashed.get(clip.key)) is not None:
            source = "|".join(clip.clip.sources)
            job.journal.quarantine(
                job.forward_digest, clip.key, Quarantined(clip.clip.clip_id, source, cause, num_recovered=0)
            )
            log.warning("Clip %s is quarantined: %s", clip.clip.clip_id, cause)
        elif (cause := orders.set_aside.get(clip.key)) is not None:
            set_aside[clip.clip.clip_id] = cause
        else:
            planned.append(clip)
    total = Result()
    if not planned:
        return total, set_aside
    log.info("Computing on %s.", "Dask workers" if job.config.dask else job.backbone.device)
    by_key = {clip.key: clip for clip in planned}
    suspects = [by_key[key] for key in orders.suspects if key in by_key]
    others = [clip for clip in planned if clip.key not in orders.suspects]
    with _progress(len(planned)) as on_progress:

        def compute_now(clips: Sequence[PlannedClip]) -> None:
            total.add(_run(job, clips, notes=notes, on_progress=on_progress))

        for clip in suspects:
            compute_now([clip])
        if others:
            compute_now(others)
        if job.config.damaged == "keep" and total.num_quarantined:
            damaged = [clip for clip in job.plan().to_extract if clip.keep_damaged]
            if damaged:
                compute_now(damaged)
    return total, set_aside


def _run(
    job: Job, planned: Sequence[PlannedClip], *, notes: Notes, on_progress: Callable[[int, int, int], None]
) -> Result:
    if job.config.dask:
        from pipeline.extraction.cluster import dask  # a second's import, for those who need it

        logging.getLogger("distributed").setLevel(logging.ERROR)  # its import sets another level
        return dask.run(
            planned,
            root=job.root,
            targets=job.targets,
            weights=weights_path(),
            journal=job.journal,
            config=job.config,
            on_progress=on_progress,
        )
    try:
        return run(
            planned,
            root=job.root,
            targets=job.targets,
            backbone=job.backbone,
            device=job.backbone.device,
            journal=job.journal,
            config=job.config,
            on_progress=on_progress,
            notes=notes,
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise PipelineError(
            f"Out of memory: {error}\nWhat was committed is kept. Lower extract.batch_size (now"
            f" {job.config.batch_size or 'by the device'}), then run the same command to go on."
        ) from error


@contextmanager
def _progress(num_clips: int) -> Iterator[Callable[[int, int, int], None]]:
    """A bar with clips, time left, frames, frames/s and bytes; to be told of clips, frames and bytes done."""
    num_frames = num_bytes = 0
    with tqdm(total=num_clips, unit="clip", desc="extract") as bar:

        def advance(new_clips: int, new_frames: int, new_bytes: int) -> None:
            nonlocal num_frames, num_bytes
            num_frames += new_frames
            num_bytes += new_bytes
            rate = num_frames / max(bar.format_dict["elapsed"], 1e-9)
            text = f"{num_frames} frames, {rate:.0f} frames/s, {size_text(num_bytes)}"
            bar.set_postfix_str(text, refresh=False)
            if new_clips:
                bar.update(new_clips)
            elif time.time() - bar.last_print_t > _REFRESH_SECONDS:  # within a long clip
                bar.refresh()

        yield advance


def write_report(
    job: Job, result: Result, *, num_restarts: int, failed: Mapping[str, str], published: Published | None
) -> None:
    """Say what was done, and write it to metrics/extract.json: figures of work are the last process'."""
    rate = round(result.num_frames / result.seconds, 1) if result.seconds else None
    lanes = result.lane_report()
    if result.num_frames:
        log.info(
            "Computed %d clips, %d frames, %s in %.1f s: %s frames/s, limited by %s (busy: %s).",
            result.num_clips,
            result.num_frames,
            size_text(result.num_bytes),
            result.seconds,
            rate,
            lanes["limited_by"],
            ", ".join(f"{name} {lane['busy']:.0%}" for name, lane in lanes["lanes"].items() if lane["busy"]),
        )
    faulty = published.faulty if published else ()
    left_out = {clip.clip_id: clip.reason for clip in faulty if clip.policy == "drop"}
    for tap, count in (published.num_clips if published else {}).items():
        log.info("features/%s: %d of %d clips.", tap, count, len(job.clips))
    if left_out:
        log.warning("%d clips are left out (features/quarantine.csv):\n%s", len(left_out), _listed(left_out))
    report: dict[str, Any] = {
        "clips": len(job.clips),
        "clips_with_features": min(published.num_clips.values()) if published else None,
        "clips_computed": result.num_clips,
        "clips_left_out": len(left_out),
        "clips_damaged_kept": len(faulty) - len(left_out),
        "clips_failed": len(failed),
        "restarts": num_restarts,
        "frames_computed": result.num_frames,
        "bytes_computed": result.num_bytes,
        "seconds": round(result.seconds, 2),
        "setup_seconds": round(result.setup_seconds, 2),
        "frames_per_second": rate,
        **lanes,
    }
    write_json(REPORT, report)


def _listed(clips: Mapping[str, str]) -> str:
    lines = [f"  {clip_id}: {reason}" for clip_id, reason in list(clips.items())[:_MAX_LISTED]]
    if len(clips) > _MAX_LISTED:
        lines.append(f"  ... and {len(clips) - _MAX_LISTED} more")
    return "\n".join(lines)


def repack_missing(job: Job, todo: Plan) -> int:
    """Copy what the journal has of the planned clips in another layout or dtype; how many, over all taps."""
    total = sum(len(clip.taps) for clip in todo.to_extract)
    with tqdm(total=total, unit="clip", desc="repack", delay=1) as bar:
        return sum(
            repack(
                job.journal,
                [clip.key for clip in todo.to_extract if target.contract.tap in clip.taps],
                contract=target.contract,
                layout=target.layout,
                commit_seconds=job.config.store.commit_seconds,
                on_clip=bar.update,
            )
            for target in job.targets
        )


def _say_waiting(holder: str) -> None:
    log.info("Waiting for another extraction with the same parameters: %s.", holder)


def _exit_at_once() -> None:
    """Run the stage, and end the process without waiting for a decoder that hangs in foreign code."""
    status: object = 0
    try:
        console.run(main)
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _exit_at_once()
