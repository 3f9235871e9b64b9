"""What comes before computing: sources are read, and features that exist elsewhere are taken over."""

import logging
from functools import partial
from pathlib import Path

from pipeline.errors import JournalError, few
from pipeline.extraction.adoption import EarlierFiles, adopt_files, adoptable_keys, view_files
from pipeline.extraction.job import Job
from pipeline.extraction.plan import Plan, damaged_key
from pipeline.extraction.progress import OnProgress, Progress, counter, ignore_progress
from pipeline.manifest.recorded import Sources, scan_sources
from pipeline.store import repack, repackable_keys

log = logging.getLogger(__name__)


def preview(
    job: Job,
    *,
    features: Path,
    earlier_files: EarlierFiles = dict,
    on_progress: OnProgress = ignore_progress,
) -> Plan:
    """The plan of a run, which also counts what the run would copy. Writes nothing.

    Parameters are those of `prepare`.
    """
    sources = read_sources(job, on_progress=on_progress)
    todo = job.plan(sources)
    if not todo.lacking:
        return todo
    contracts = [target.contract for target in job.targets]
    adoptable = adoptable_keys(view_files(features, earlier_files), contracts)
    copies = {
        target.contract.name: repackable_keys(job.journal, target.contract, target.layout)
        | adoptable[target.contract.name]
        for target in job.targets
    }
    return job.plan(sources, copies=copies)


def prepare(
    job: Job,
    *,
    features: Path,
    earlier_files: EarlierFiles = dict,
    retry: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> Plan:
    """Put into the journal what can be had without computing, then plan the rest. The caller holds the lock.

    `retry` takes clips out of quarantine. `features` is the folder of the view; where it is empty,
    `earlier_files` finds the files of the last view: {path inside the view: file}.

    Raises JournalError when clips are missing in a journal that can't be written.
    """
    try:
        sources = read_sources(job, on_progress=on_progress)
    finally:  # what was read of the sources is not read again
        job.digests.save()
    make_plan = partial(job.plan, sources)
    todo = make_plan()
    if retry:
        make_plan = partial(job.plan, sources, retried=_forgive(job, todo))
        todo = make_plan()
    if todo.lacking and job.journal.is_read_only:
        raise JournalError(
            f"{len(todo.lacking)} clips have no features, and the journal {job.journal.path} can't be"
            " written."
        )
    # Each step makes the plan anew, whatever it did: another process may have done its work meanwhile.
    if todo.lacking:
        if num_shards := adopt_files(job.journal, view_files(features, earlier_files)):
            log.info("Adopted %d shards of an earlier view.", num_shards)
        todo = make_plan()
    if todo.lacking:
        if num_clips := _repack_missing(job, todo, on_progress=on_progress):
            log.info("Repacked %d clips that were there in another layout or dtype.", num_clips)
        todo = make_plan()
    return todo


def read_sources(job: Job, *, on_progress: OnProgress) -> Sources:
    """Read the sources that are new or changed. What can't be read stands as recorded."""
    sources = scan_sources(
        job.manifest.sources(),
        root=job.root,
        digests=job.digests,
        recorded=job.recorded,
        on_progress=lambda num_done, num_total: on_progress(Progress("read sources", num_done, num_total)),
    )
    if recorded := sources.recorded:
        log.warning(
            "%d sources can't be read here; their recorded content stands: %s",
            len(recorded),
            few(recorded, at_most=3),
        )
    return sources


def _forgive(job: Job, todo: Plan) -> set[bytes]:
    """Take clips that can be read here out of quarantine. Returns the keys of those that were in it."""
    unread = todo.sources.unread.keys()
    readable = [clip.clip_id for clip in job.clips if unread.isdisjoint(clip.sources)]
    keys = {key for name in readable for key in (todo.keys[name], damaged_key(todo.keys[name]))}
    digests = [job.forward_digest, *(target.contract.digest() for target in job.targets)]
    return set[bytes]().union(*(job.journal.forgive(digest, keys) for digest in digests))


def _repack_missing(job: Job, todo: Plan, *, on_progress: OnProgress) -> int:
    """Copy what the journal has of the planned clips in another layout or dtype; how many, over all."""
    keys = []
    for target in job.targets:
        missing = {clip.key for clip in todo.lacking if target.contract.name in clip.targets}
        keys.append(missing & repackable_keys(job.journal, target.contract, target.layout))
    add = counter(on_progress, "repack", num_total=sum(map(len, keys)))
    return sum(
        repack(
            job.journal,
            found,
            contract=target.contract,
            layout=target.layout,
            commit_seconds=job.machine.commit_seconds,
            on_clip=partial(add, 1),
        )
        for target, found in zip(job.targets, keys, strict=True)
    )
