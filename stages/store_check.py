"""`python -m stages.store check`: do source and weights give the same features on this machine?"""

import argparse
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.backbone.sources import own_code
from pipeline.contract import FeatureContract
from pipeline.errors import ConfigError, ForeignFeaturesError, MissingFeaturesError, StoreError, few
from pipeline.extraction.again import Again, compute_again
from pipeline.manifest import Manifest, read_manifest
from pipeline.store import open_view
from pipeline.store.upkeep.compare import Comparison, clip_keys, compare_clips, evenly
from pipeline.store.view import INDEX_NAME
from pipeline.system.devices import made_with, resolve_device
from stages import console
from stages.bars import Bars
from stages.extract_job import show_progress
from stages.machine import read_machine
from stages.params import read_params
from stages.places import FEATURES, weights_path
from stages.project.visible import corpus_root

EXTRACTION = Path("reports/extract.json")
_UNKNOWN = "not recorded"


def check(arguments: argparse.Namespace) -> None:
    """Compare stored features with features that are computed anew; raise StoreError where they differ."""
    folders = arguments.tap or sorted(index.parent for index in FEATURES.glob(f"*/{INDEX_NAME}"))
    if not folders:
        raise MissingFeaturesError(f"There are no features in {FEATURES}.")
    if arguments.against:
        from stages.store_against import check_against

        if len(folders) > 1:
            raise ConfigError(f"--against: name one of {few(folders)}.")
        check_against(folders[0], arguments)
        return
    if imported := [folder for folder in folders if _contract(folder).foreign]:
        raise ForeignFeaturesError(f"{few(imported)} were imported: nothing here can compute them again.")
    params, machine = read_params(), read_machine()
    manifest = read_manifest(params.corpus.manifest)
    differing = []
    with tempfile.TemporaryDirectory(prefix="framecache-check-") as temporary, _warnings_alone():
        for number, paths in enumerate(_by_network(folders)):
            contracts = [_contract(path) for path in paths]
            chosen = choose_clips(manifest, paths, num_clips=arguments.clips)
            with Bars("clip") as bars:
                made = compute_again(
                    contracts,
                    chosen,
                    root=corpus_root(params.corpus.root),
                    weights=weights_path(contracts[0].arch),
                    config=params.extract,
                    own=own_code(params.weights),
                    machine=machine,
                    folder=Path(temporary) / str(number),
                    on_progress=partial(show_progress, bars),
                )
            found = {path: _compare(path, again, chosen) for path, again in zip(paths, made, strict=True)}
            console.print_table([to_row(path, each) for path, each in found.items()])
            _print_clips(paths[0], made[0])
            print_provenance(contracts[0], made[0].contract, machine=_versions(machine.device))
            differing += [path for path, each in found.items() if not each.is_within(arguments.tolerance)]
    if differing:
        raise StoreError(
            f"{few(differing)} differ from what is computed here by more than the tolerance,"
            f" {arguments.tolerance:g}, or in their frames."
        )
    print(f"Equal within the tolerance, {arguments.tolerance:g}.")


@contextmanager
def _warnings_alone() -> Iterator[None]:
    """Of the library's messages, only warnings."""
    logger = logging.getLogger("pipeline")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _by_network(folders: Iterable[Path]) -> list[list[Path]]:
    """The features' folders, those of one network together."""
    groups: dict[str, list[Path]] = {}
    for folder in folders:
        groups.setdefault(_contract(folder).forward_digest(), []).append(folder)
    return list(groups.values())


def _contract(folder: Path) -> FeatureContract:
    with open_view(folder) as view:
        return view.contract


def choose_clips(manifest: Manifest, folders: Sequence[Path], *, num_clips: int) -> Manifest:
    """So many clips of the manifest, evenly spaced among those whose features are in all the folders.

    Raises ConfigError for a number below 1, MissingFeaturesError when there are no such clips.
    """
    common = set(manifest.column("clip_id").to_pylist())
    for folder in folders:
        with open_view(folder) as view:
            common.intersection_update(view.clip_ids())
    rows = [row for row, clip_id in enumerate(manifest.column("clip_id").to_pylist()) if clip_id in common]
    if not rows:
        raise MissingFeaturesError(f"{few(folders)}: no clip of the manifest has features there.")
    chosen = evenly(rows, num_clips)
    return Manifest(manifest.table.take(chosen), manifest.rows[chosen])


def _compare(path: Path, again: Again, chosen: Manifest) -> Comparison:
    with open_view(path) as view, open_view(again.features) as made:
        return compare_clips(view, made, [clip.clip_id for clip in chosen if clip.clip_id in made])


def to_row(name: object, comparison: Comparison) -> dict[str, str]:
    """A comparison as a row of a table."""
    return {
        "features": str(name),
        "clips": str(comparison.num_clips),
        "frames": str(comparison.num_frames),
        "missing": str(comparison.num_missing),
        "moved": str(comparison.num_moved),
        "largest difference": f"{comparison.largest:.3g}",
        "distance": f"{comparison.distance:.2g}",
        "cosine": f"{comparison.cosine:.6f}",
        "equal bits": f"{comparison.equal_share:.2%}",
    }


def _print_clips(path: Path, again: Again) -> None:
    """Say which clips could not be computed, and which have other sources than those of the features."""
    for clip_id, reason in again.left_out.items():
        print(f"{clip_id} can't be computed here: {reason}")
    stored = clip_keys(path)
    keys = set(stored.values())  # a clip may have had another id
    found = clip_keys(again.features).items()
    if changed := sorted(name for name, key in found if stored.get(name, key) != key or key not in keys):
        print(f"The sources or time ranges of {few(changed)} have changed since the features were made.")


def print_provenance(
    stored: FeatureContract, here: FeatureContract, *, machine: Mapping[str, tuple[Any, Any]] = {}
) -> None:
    """What the features were made with, beside what there is here; first what decides their values.

    `machine` has versions and device, {name: (there, here)}.
    """
    always = {
        name: (getattr(stored, name), getattr(here, name)) for name in ("revision", "precision", "backend")
    }
    rows = {**always, **stored.differences(here), **machine}
    console.print_table(
        [
            {
                "made with": name,
                "features": str(there),
                "here": str(value),
                "": "" if there in (value, _UNKNOWN) else "differs",
            }
            for name, (there, value) in rows.items()
        ]
    )


def _versions(device: str) -> dict[str, tuple[str, str]]:
    """Versions and device of the last extraction that computed something, and those here."""
    report = json.loads(EXTRACTION.read_bytes()) if EXTRACTION.exists() else {}
    recorded = report.get("made_with") or {}
    here = made_with(resolve_device(device))
    return {name: (recorded.get(name, _UNKNOWN), value) for name, value in here.items()}
