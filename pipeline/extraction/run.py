"""An extraction from its job to the published view."""

import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import OutOfMemoryError
from pipeline.extraction.adoption import EarlierFiles
from pipeline.extraction.engine import compute_clips
from pipeline.extraction.extracted import Extracted, log_facts, make_extracted
from pipeline.extraction.job import Job, make_job
from pipeline.extraction.plan import Plan, PlannedClip
from pipeline.extraction.prepare import prepare
from pipeline.extraction.progress import OnProgress, counter, ignore_progress
from pipeline.extraction.publish import publish_view
from pipeline.extraction.result import Result
from pipeline.extraction.write import OnWork
from pipeline.manifest import read_manifest
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.store import Quarantined
from pipeline.system.memory import is_out_of_memory
from pipeline.system.own_code import OwnCode
from pipeline.system.supervisor import Notes, Orders

log = logging.getLogger(__name__)

_NO_ORDERS = Orders()
_UNHEARD = Notes()


def extract(
    manifest: str | Path,
    *,
    root: str | Path,
    weights: str | Path,
    config: ExtractConfig = ExtractConfig(),
    machine: Machine = Machine(),
    own: OwnCode | None = None,
    features: str | Path = "features",
    journal: str | Path = ".framecache",
    on_progress: OnProgress | None = None,
) -> Extracted:
    """Compute the features of a manifest's clips that the journal lacks, and publish a view of all.

    Reads the CSV or Parquet file `manifest`, whose sources are below `root`, and the file `weights`; writes
    `features`/<tap> and `features`/quarantine.csv. Whatever is in `journal` is not computed again, also after
    an interrupted run. `own` is the user's code that builds the network, if torchvision does not.
    `on_progress` may be called on another thread; logging tells of plan and results.

    Runs in this process, without a supervisor: a source on which a decoder crashes or hangs takes the process
    with it. (The stage `extract` supervises a process of its own, and goes on without such a source.)

    Raises ManifestError, WeightsError, ConfigError and StoreError for what can't be used, DiskFullError, and
    PipelineError when clips have failed for a passing reason or too many are left out; then nothing is
    published, and what was computed is kept.
    """
    job = make_job(
        read_manifest(Path(manifest)),
        root=Path(root),
        weights=Path(weights),
        config=config,
        machine=machine,
        own=own,
        journal=Path(journal),
    )
    extracted = run_job(job, features=Path(features), on_progress=on_progress or ignore_progress)
    extracted.check_complete()
    return extracted


def run_job(
    job: Job,
    *,
    features: Path,
    earlier_files: EarlierFiles = dict,
    retry: bool = False,
    orders: Orders = _NO_ORDERS,
    notes: Notes = _UNHEARD,
    on_progress: OnProgress = ignore_progress,
) -> Extracted:
    """Compute what the journal lacks and publish the view `features`, unless clips have failed.

    `orders` and `notes` are those of a supervised process. The other parameters, and errors, are those of
    `prepare`, `compute_clips` and `publish_view`.
    """
    with job.journal.lock(job.forward_digest, on_wait=_say_waiting):
        for target in job.targets:
            job.journal.sweep(target.contract, target.layout)
        todo = prepare(
            job,
            features=features,
            earlier_files=earlier_files,
            retry=retry,
            on_progress=on_progress,
        )
        log.info("Plan:\n%s", todo.summary())
        result, set_aside = _compute(job, todo, orders=orders, notes=notes, on_progress=on_progress)
        failed = {**todo.unreadable, **set_aside, **result.failed}
        published = None
        if not failed:
            published = publish_view(
                todo.keys,
                targets=job.targets,
                journal=job.journal,
                path=features,
                damaged=job.config.damaged,
                min_frames=job.config.min_frames,
                max_failed_share=job.config.max_failed_share,
            )
    clip_ids = [clip.clip_id for clip in job.clips]
    extracted = make_extracted(
        result, published, clip_ids=clip_ids, failed=failed, contents=todo.sources.contents
    )
    log_facts(extracted, features=str(features))
    return extracted


def _compute(
    job: Job, todo: Plan, *, orders: Orders, notes: Notes, on_progress: OnProgress
) -> tuple[Result, dict[str, str]]:
    """Compute the planned clips. Returns what was done, and the clips that an earlier process stalled on."""
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
    log.info("Computing on %s.", "Dask workers" if job.machine.dask else job.backbone.device)
    by_key = {clip.key: clip for clip in planned}
    # Suspects alone: the one on which the process dies again is guilty.
    groups = [[by_key.pop(key)] for key in orders.suspects if key in by_key] + [[*by_key.values()]]
    add = counter(on_progress, "extract", num_total=len(planned))
    for group in filter(None, groups):
        total.add(_compute_now(job, group, notes=notes, on_work=add))
    if job.config.damaged == "keep" and total.num_quarantined:
        damaged = [clip for clip in job.plan(todo.sources).to_extract if clip.keep_damaged]
        if damaged:
            add = counter(on_progress, "extract damaged clips", num_total=len(damaged))
            total.add(_compute_now(job, damaged, notes=notes, on_work=add))
    return total, set_aside


def _compute_now(job: Job, planned: Sequence[PlannedClip], *, notes: Notes, on_work: OnWork) -> Result:
    on_work(0, 0, 0)
    if job.machine.dask:
        from pipeline.extraction.cluster.dask import compute_on_workers  # a second's import

        return compute_on_workers(
            planned,
            root=job.root,
            targets=job.targets,
            weights=job.weights,
            own=job.own,
            journal=job.journal,
            config=job.config,
            machine=job.machine,
            on_progress=on_work,
        )
    try:
        return compute_clips(
            planned,
            root=job.root,
            targets=job.targets,
            backbone=job.backbone,
            journal=job.journal,
            config=job.config,
            machine=job.machine,
            on_progress=on_work,
            notes=notes,
            digests=job.digests,
        )
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"Out of memory: {error}\nWhat was committed is kept. A smaller batch_size takes less (now"
            f" {job.machine.batch_size or 'by the device'})."
        ) from error


def _say_waiting(holder: str) -> None:
    log.info("Waiting for another extraction with the same parameters: %s.", holder)
