"""`python -m stages.store check --against`: features beside those of others, and why they differ."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pipeline.backbone.sources import own_code
from pipeline.backbone.weights import find_weights
from pipeline.deploy.suspects import (
    Form,
    Suspect,
    find_form,
    suspects_in_arrays,
    suspects_in_pixels,
)
from pipeline.errors import ConfigError, PipelineError, StoreError, few
from pipeline.manifest import read_manifest
from pipeline.store import FeatureView, open_view
from pipeline.store.upkeep.compare import Comparison, evenly
from pipeline.store.upkeep.foreign import foreign_clips
from pipeline.store.view import INDEX_NAME
from pipeline.system.devices import resolve_device
from stages import console
from stages.machine import read_machine
from stages.params import read_params
from stages.project.visible import corpus_root
from stages.store_check import print_provenance, to_row

Theirs = Mapping[str, tuple[np.ndarray, np.ndarray | None]]  # array and times of each clip


def check_against(folder: Path, arguments: argparse.Namespace) -> None:
    """Compare a tap's features with those at `arguments.against`; raise StoreError where they differ."""
    path = arguments.against
    with open_view(folder) as view:
        store = _find_view(path, view.contract.name)
        theirs = _of_view(store, view, arguments.clips) if store else _of_files(path, view, arguments.clips)
        ours = {name: view.read(name) for name in theirs}
        form = find_form(ours, {name: array for name, (array, _) in theirs.items()})
        comparison = Comparison()
        for name, (array, seconds) in theirs.items():
            comparison.add(
                np.ascontiguousarray(form.theirs(array)),
                np.ascontiguousarray(form.ours(ours[name])),
                seconds=seconds,
                expected_seconds=view.frame_seconds(name),
            )
        console.print_table([to_row(path, comparison)])
        print(f"Compared with {folder}: {form.axes}; {form.pooling}.")
        if store:
            with open_view(store) as other:
                print_provenance(other.contract, view.contract)
        if comparison.is_within(arguments.tolerance):
            print(f"Equal within the tolerance, {arguments.tolerance:g}.")
            return
        arrays = {name: array for name, (array, _) in theirs.items()}
        found = [*suspects_in_arrays(ours, arrays, form=form), *_in_pixels(view, arrays, form)]
    _print_suspects(found, as_they_are=comparison)
    raise StoreError(f"{path} differs from {folder} by more than the tolerance, {arguments.tolerance:g}.")


def _find_view(path: Path, name: str) -> Path | None:
    """The features in a folder: its own, those of this name, or all that there are; None for other files.

    Raises ConfigError for several of other names.
    """
    inside = sorted(index.parent for index in path.glob(f"*/{INDEX_NAME}"))
    named = [each for each in (path, path / name) if (each / INDEX_NAME).exists()]
    if not named and len(inside) > 1:
        raise ConfigError(f"--against: name one of {few(inside)}.")
    return next(iter([*named, *inside]), None)


def _of_view(path: Path, view: FeatureView, num_clips: int) -> Theirs:
    with open_view(path) as other:
        names = _common(path, other.clip_ids(), view, num_clips)
        return {name: (other.read(name), other.frame_seconds(name)) for name in names}


def _of_files(path: Path, view: FeatureView, num_clips: int) -> Theirs:
    clips = {clip.clip_id: clip for clip in foreign_clips(path)}
    names = _common(path, list(clips), view, num_clips)
    return {name: (clips[name].load(), clips[name].load_seconds()) for name in names}


def _common(path: Path, clip_ids: list[str], view: FeatureView, num_clips: int) -> list[str]:
    """So many clips, evenly spaced among those that both have. Raises ConfigError for none."""
    common = [clip_id for clip_id in clip_ids if clip_id in view]
    if not common:
        raise ConfigError(
            f"{path} and {view.path} have no clip in common: there are {few(clip_ids, at_most=3)} there, and"
            f" {few(view.clip_ids(), at_most=3)} here."
        )
    return evenly(common, num_clips)


def _in_pixels(view: FeatureView, theirs: Mapping[str, np.ndarray], form: Form) -> Iterator[Suspect]:
    """The causes for which sources and weights are needed; a line where they are not here."""
    try:
        params = read_params()
        clips = [clip for clip in read_manifest(params.corpus.manifest) if clip.clip_id in theirs]
        if len(clips) < len(theirs):
            raise ConfigError("the manifest does not have these clips")
        yield from suspects_in_pixels(
            clips,
            theirs,
            form=form,
            contract=view.contract,
            weights=find_weights(view.contract, place=Path("weights"), own=own_code(params.weights)),
            root=corpus_root(params.corpus.root),
            device=resolve_device(read_machine().device),
        )
    except (PipelineError, OSError) as error:
        print(f"Not tried are causes for which frames are read: {error}")


def _print_suspects(found: list[Suspect], *, as_they_are: Comparison) -> None:
    print("\nLikely causes, each tried by itself:")
    ranked = sorted(found, key=lambda suspect: -np.nan_to_num(suspect.comparison.cosine))
    rows = [Suspect("none: as they are", as_they_are), *ranked]
    console.print_table(
        [
            {
                "cause": each.cause,
                "cosine": f"{each.comparison.cosine:.6f}",
                "distance": f"{each.comparison.distance:.2g}",
                "largest difference": f"{each.comparison.largest:.3g}",
            }
            for each in rows
        ]
    )
    best = ranked[0]
    if best.comparison.distance < 0.5 * as_they_are.distance:
        print(f"Likeliest: {best.cause}.")
    else:
        print(
            "None of them explains the difference. It may be other weights, another network or another tap."
        )
