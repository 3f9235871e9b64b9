"""`python -m stages.store dump`: clips, with labels and splits, for other programs."""

import argparse
from pathlib import Path

from pipeline.corpora import write_labels
from pipeline.errors import ConfigError, StoreError
from pipeline.manifest import Clip, read_manifest, write_manifest
from pipeline.store import open_view
from pipeline.store.upkeep.dump import dump
from pipeline.store.upkeep.foreign import HDF5_SUFFIXES
from stages.bars import ProgressBar
from stages.params import PARAMS, read_params


def dump_features(arguments: argparse.Namespace) -> None:
    """Write the clips that the arguments name, and the manifest's labels and splits."""
    out, form = arguments.out, arguments.format
    beside = out.with_suffix(".csv")  # of a file, which can't hold a manifest
    if form == "hdf5" and out.suffix not in HDF5_SUFFIXES:
        raise ConfigError(f"--out {out}: a file of HDF5 ends in {' or '.join(HDF5_SUFFIXES)}.")
    if form == "hdf5" and beside.exists():
        raise StoreError(f"{beside} exists, and the labels go there. Give another name, or remove it.")
    with open_view(arguments.tap) as view:
        clip_ids = list(dict.fromkeys(arguments.clip)) or view.clip_ids()
        clips = _clips(arguments.manifest)

        def add_labels(folder: Path) -> None:
            write_labels(folder, clips, {name: view.frame_seconds(name) for name in clip_ids}, form=form)

        with ProgressBar(total=len(clip_ids), unit="clip", desc="dump") as bar:
            dump(view, clip_ids, out, form=form, add_files=add_labels, on_clip=bar.update)
    if form == "hdf5" and clips:
        write_manifest(beside, clips)
    print(f"{len(clip_ids)} clips are in {out}{', with labels and splits' if clips else ''}.")


def _clips(manifest: Path | None) -> list[Clip]:
    """The clips of the manifest, or else of the project's, if there is one."""
    if manifest is None and not PARAMS.exists():
        return []
    return read_manifest(manifest or read_params().corpus.manifest).clips()
