"""The work of stage extract, in the process that stages/extract.py supervises; and its plan."""

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.backbone import Backbone, Weights, seconds_saved_by_compiling
from pipeline.contract import FeatureContract
from pipeline.devices import resolve_device
from pipeline.errors import ConfigError, PipelineError
from pipeline.extract import (
    ExtractConfig,
    Plan,
    PlannedClip,
    Published,
    Result,
    Target,
    damaged_key,
    estimate,
    plan,
    publish_view,
    run,
    source_paths,
)
from pipeline.files import write_atomically
from pipeline.manifest import Clip, check_sources, read_manifest
from pipeline.store import DigestCache, Journal, Layout, Quarantined, repack, repackable_keys
from pipeline.supervisor import Notes, Orders, interrupt_once, read_orders
from pipeline.weights import load_weights
from stages import console
from stages.adoption import adopt_view, adoptable_keys
from stages.params import CorpusConfig, journal_path, load_section

log = logging.getLogger(__name__)

FEATURES = Path("features")
REPORT = Path("metrics/extract.json")

_MAX_LISTED = 20


@dataclass(frozen=True)
class Job:
    """What params.yaml asks for, and where."""

    config: ExtractConfig
    clips: tuple[Clip, ...]
    root: Path
    backbone: Backbone
    targets: tuple[Target, ...]
    journal: Journal
    digests: DigestCache

    @property
    def forward_digest(self) -> str:
        return self.targets[0].contract.forward_digest()

    def plan(self, *, copies: Mapping[str, AbstractSet[bytes]] | None = None) -> Plan:
        return plan(
            self.clips,
            root=self.root,
            targets=self.targets,
            journal=self.journal,
            digests=self.digests,
            damaged=self.config.damaged,
            min_frames=self.config.min_frames,
            copies=copies,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--notes", type=int, required=True)
    parser.add_argument("--orders", type=int, required=True)
    parser.add_argument("--retry-quarantined", action="store_true")
    arguments = parser.parse_args()
    interrupt_once()
    notes, orders = Notes(arguments.notes), read_orders(arguments.orders)
    job = read_job()
    with job.journal.lock(job.forward_digest, on_wait=_say_waiting):
        for target in job.targets:
            job.journal.sweep(target.contract, target.layout)
        todo = prepare(job, retry=arguments.retry_quarantined and not orders.num_restarts)
        log.info("Plan: %s.", todo.summary())
        result, set_aside = compute(job, todo, notes=notes, orders=orders)
        failed = {**todo.unreadable, **set_aside, **result.failed}
        if failed:
            write_report(job, result, num_restarts=orders.num_restarts, failed=failed, published=None)
            raise PipelineError(
                f"{len(failed)} clips failed, and may not fail again:\n{_listed(failed)}\n"
                "The features of the others are kept; run the same command to try these again."
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


def read_job(*, only_plan: bool = False) -> Job:
    """What the parameters ask for; errors that the user can mend come here.

    To plan, no journal is made and the network is not compiled.
    """
    corpus = load_section("corpus", CorpusConfig)
    config = load_section("extract", ExtractConfig)
    root = visible_root(corpus.root)
    manifest = read_manifest(Path(corpus.manifest))
    check_sources(manifest, root=root)
    weights = load_weights(weights_path())
    if config.dask and not only_plan:  # Dask's workers have networks of their own; this one knows shapes
        backbone = Backbone(weights, taps=config.taps, device=torch.device("cpu"))
    else:
        backbone = Backbone(
            weights,
            taps=config.taps,
            device=resolve_device(config.device),
            precision=config.precision,
            backend="eager" if only_plan else config.backend,
        )
    targets = make_targets(config, weights, backbone)
    journal = Journal(journal_path(), create=not only_plan)
    return Job(config, tuple(manifest), root, backbone, tuple(targets), journal, journal.digest_cache())


def prepare(job: Job, *, retry: bool) -> Plan:
    """The plan, when all that can be had without computing is in the journal."""
    try:
        read_sources(job)
    finally:  # what was read of the sources is not read again
        job.digests.save()
    todo = job.plan()
    job.digests.save()
    if retry:
        keys = [key for clip_key in todo.keys.values() for key in (clip_key, damaged_key(clip_key))]
        log.info("Trying %d quarantined clips again.", job.journal.forgive(job.forward_digest, keys))
        todo = job.plan()
    if todo.to_extract and (num_shards := adopt_view(job.journal, path=FEATURES)):
        log.info("Adopted %d shards of an earlier run from DVC.", num_shards)
        todo = job.plan()
    if todo.to_extract and (num_repacked := repack_missing(job, todo)):
        log.info("Repacked %d clips that were there in another layout or dtype.", num_repacked)
        todo = job.plan()
    return todo


def read_sources(job: Job) -> None:
    """Read the sources that are new or changed, for the plan, with a progress bar."""
    sizes = job.digests.unknown(source_paths(job.clips, root=job.root))
    total = sum(sizes.values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="read sources", delay=1) as bar:
        for path in job.digests.learn(sizes):
            bar.update(sizes[path])


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
        from pipeline.extract import dask  # a second's import, for those who need it

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
    except (MemoryError, torch.OutOfMemoryError) as error:
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
            text = f"{num_frames} frames, {rate:.0f} frames/s, {_size(num_bytes)}"
            bar.set_postfix_str(text, refresh=False)
            bar.update(new_clips)

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
            _size(result.num_bytes),
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
    write_atomically(REPORT, (json.dumps(report, indent=1) + "\n").encode())


def show_plan() -> None:
    """Print what a run would do, how long that takes and how much disk. Writes nothing."""
    job = read_job(only_plan=True)
    read_sources(job)
    todo = job.plan()
    if todo.to_extract:
        todo = job.plan(copies=_copies(job))
    print(f"Clips: {todo.summary()}.")
    for name, error in todo.unreadable.items():
        print(f"  {name} can't be read: {error}")
    if not todo.to_extract:
        print("Nothing to compute.")
        return
    guess = estimate(
        todo.to_extract, root=job.root, targets=job.targets, backbone=job.backbone, config=job.config
    )
    if guess is None:
        print("None of the clips that were looked at can be decoded: a run would quarantine them.")
        return
    num_clips = len(todo.to_extract)
    about = "" if guess.num_counted == num_clips else "about "
    print(f"Frames: {about}{guess.num_frames}, counted in {guess.num_counted} of {num_clips} clips.")
    for tap, num_bytes in guess.bytes_by_tap.items():
        print(f"  features/{tap}: {about}{_size(num_bytes)} more, before compression.")
    device = job.backbone.device
    eager_seconds = guess.num_frames / guess.compute_frames_per_second
    saved_seconds = seconds_saved_by_compiling(eager_seconds, device=device)
    seconds = guess.seconds - (saved_seconds if job.config.backend == "inductor" else 0)
    print(
        f"Time: about {_duration(seconds)} on {device}: a decoder gives {guess.decode_frames_per_second:.0f}"
        f" frames/s, the network {guess.compute_frames_per_second:.0f} (measured on {guess.num_measured})."
    )
    if job.config.backend == "eager" and saved_seconds > 0:
        print(f"extract.backend=inductor would save about {_duration(saved_seconds)} of it.")
    if job.config.backend == "inductor" and saved_seconds < 0:
        print(f"extract.backend=eager would save about {_duration(-saved_seconds)} of it.")


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=math.ceil(seconds)))


def _copies(job: Job) -> dict[str, AbstractSet[bytes]]:
    """By tap, the keys of features that a run would not compute: in another layout or dtype, or with DVC."""
    adoptable = adoptable_keys(FEATURES, [target.contract for target in job.targets])
    return {
        target.contract.tap: repackable_keys(job.journal, target.contract, target.layout)
        | adoptable[target.contract.tap]
        for target in job.targets
    }


def _listed(clips: Mapping[str, str]) -> str:
    lines = [f"  {clip_id}: {reason}" for clip_id, reason in list(clips.items())[:_MAX_LISTED]]
    if len(clips) > _MAX_LISTED:
        lines.append(f"  ... and {len(clips) - _MAX_LISTED} more")
    return "\n".join(lines)


def _size(num_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


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


def make_targets(config: ExtractConfig, weights: Weights, backbone: Backbone) -> list[Target]:
    """What is to be stored for each tap of the parameters."""
    targets = []
    for tap in config.taps:
        contract = FeatureContract(
            sampling=config.sampling,
            preprocessing=config.preprocessing,
            mean=weights.mean,
            std=weights.std,
            arch=weights.arch,
            weights_sha256=weights.sha256,
            precision=config.precision,
            backend=config.backend,
            tap=tap,
            pooling=config.pooling,
            dtype=config.dtype,
        )
        channels, height, width = backbone.map_shape(tap, *config.preprocessing.crop_size)
        row_shape = (channels, 1, 1) if config.pooling != "none" else (channels, height, width)
        targets.append(Target(contract, Layout.of(config.store, row_shape=row_shape, dtype=config.dtype)))
    return targets


def weights_path() -> Path:
    """weights/<arch>.safetensors of the parameters."""
    from pipeline.weights import WeightsConfig

    return Path("weights") / f"{load_section('weights', WeightsConfig).arch}.safetensors"


def visible_root(root: str) -> Path:
    """The corpus root, refused if queued experiments, which run in another folder, can't see it."""
    path = Path(root)
    if not path.is_dir():
        raise ConfigError(f"corpus.root: no folder {root!r} in {Path.cwd()}.")
    if path.is_absolute() or _git_tracks(path) or _dvc_tracks(path):
        return path
    raise ConfigError(
        f"corpus.root: {root!r} is relative and tracked by neither git nor DVC, so queued experiments"
        f" would not find it. Give the absolute path, {str(path.resolve())!r}, or track it: `dvc add {root}`."
    )


def _git_tracks(path: Path) -> bool:
    """Whether git has files of this folder. Without git there are no experiments: then True."""
    listing = subprocess.run(["git", "ls-files", "--", path], capture_output=True, text=True, check=False)
    return bool(listing.stdout) or "not a git repository" in listing.stderr


def _dvc_tracks(path: Path) -> bool:
    from dvc.exceptions import OutputNotFoundError
    from dvc.repo import Repo  # takes a second to import

    try:
        with Repo() as repo:
            return bool(repo.find_outs_by_path(str(path), strict=False))
    except OutputNotFoundError:
        return False


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
