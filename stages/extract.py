"""Frames -> feature maps: runs the frozen network over every clip that has no features yet."""

import argparse
import json
import logging
import subprocess
from pathlib import Path

from tqdm import tqdm

from pipeline.backbone import Backbone, Weights
from pipeline.contract import FeatureContract
from pipeline.devices import resolve_device
from pipeline.errors import ConfigError, PipelineError
from pipeline.extract import ExtractConfig, Plan, Result, Target, plan, publish_view, run
from pipeline.files import write_atomically
from pipeline.manifest import check_sources, read_manifest
from pipeline.store import Journal, Layout, repack
from pipeline.weights import load_weights
from stages import console
from stages.adoption import adopt_view
from stages.params import CorpusConfig, journal_path, load_section

log = logging.getLogger(__name__)

FEATURES = Path("features")
REPORT = Path("metrics/extract.json")


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m stages.extract",
        description=__doc__,
        epilog="Reads corpus.*, weights.arch and extract.* from params.yaml and weights/<arch>.safetensors;"
        " writes features/<tap>/ and metrics/extract.json. Features are kept in .framecache/ (or where"
        " FRAMECACHE_JOURNAL says), so nothing is computed twice.",
    ).parse_args()
    corpus = load_section("corpus", CorpusConfig)
    config = load_section("extract", ExtractConfig)
    root = visible_root(corpus.root)
    manifest = read_manifest(Path(corpus.manifest))
    check_sources(manifest, root=root)
    weights = load_weights(weights_path())
    device = resolve_device(config.device)
    backbone = Backbone(weights, taps=config.taps, device=device)
    targets = make_targets(config, weights, backbone)
    journal = Journal(journal_path())
    clips = list(manifest)

    with journal.lock(targets[0].contract.forward_digest(), on_wait=_say_waiting):
        for target in targets:
            journal.sweep(target.contract, target.layout)
        digests = journal.digest_cache()
        todo = plan(clips, root=root, targets=targets, journal=journal, digests=digests)
        if todo.to_extract and (num_shards := adopt_view(journal, path=FEATURES)):
            log.info("Adopted %d shards of an earlier run from DVC.", num_shards)
            todo = plan(clips, root=root, targets=targets, journal=journal, digests=digests)
        if todo.to_extract and (num_repacked := repack_missing(todo, targets, journal, config)):
            log.info("Repacked %d clips that were there in another layout or dtype.", num_repacked)
            todo = plan(clips, root=root, targets=targets, journal=journal, digests=digests)
        log.info("Plan: %s.", todo.summary())
        result = Result()
        if todo.to_extract:
            log.info("Computing on %s.", device)
            with tqdm(total=len(todo.to_extract), unit="clip", desc="extract") as bar:
                num_frames = 0

                def advance(num_clips: int, new_frames: int) -> None:
                    nonlocal num_frames
                    num_frames += new_frames
                    rate = num_frames / max(bar.format_dict["elapsed"], 1e-9)
                    bar.set_postfix_str(f"{num_frames} frames, {rate:.0f} frames/s", refresh=False)
                    bar.update(num_clips)

                result = run(
                    todo.to_extract,
                    root=root,
                    targets=targets,
                    backbone=backbone,
                    device=device,
                    journal=journal,
                    config=config,
                    on_progress=advance,
                )
        failed = {**todo.unreadable, **result.failed}
        if failed:
            lines = "\n".join(f"  {clip_id}: {reason}" for clip_id, reason in failed.items())
            raise PipelineError(
                f"{len(failed)} clips could not be read:\n{lines}\nThe other {result.num_clips} are kept;"
                " run the same command to try these again."
            )
        num_clips = publish_view(todo.keys, targets=targets, journal=journal, path=FEATURES)
    for tap, count in num_clips.items():
        log.info("features/%s: %d of %d clips.", tap, count, len(clips))
    report = {
        "clips": len(clips),
        "clips_with_features": min(num_clips.values()),
        "clips_computed": result.num_clips,
        "clips_quarantined": len(clips) - min(num_clips.values()),
        "frames_computed": result.num_frames,
        "seconds": round(result.seconds, 2),
        "frames_per_second": round(result.num_frames / result.seconds, 1) if result.seconds else None,
    }
    write_atomically(REPORT, (json.dumps(report, indent=1) + "\n").encode())


def repack_missing(todo: Plan, targets: list[Target], journal: Journal, config: ExtractConfig) -> int:
    """Copy what the journal has of the planned clips in another layout or dtype; how many, over all taps."""
    total = sum(len(clip.taps) for clip in todo.to_extract)
    with tqdm(total=total, unit="clip", desc="repack", delay=1) as bar:
        return sum(
            repack(
                journal,
                [clip.key for clip in todo.to_extract if target.contract.tap in clip.taps],
                contract=target.contract,
                layout=target.layout,
                commit_seconds=config.store.commit_seconds,
                on_clip=bar.update,
            )
            for target in targets
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


if __name__ == "__main__":
    console.run(main)
