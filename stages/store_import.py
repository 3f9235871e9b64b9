"""`python -m stages.store import`: features that another program made become a view."""

import argparse
from pathlib import Path

from pipeline.corpora import labels_beside
from pipeline.errors import ConfigError, StoreError
from pipeline.manifest import check_clips, write_manifest
from pipeline.store.upkeep.foreign import foreign_clips, usual_rate
from pipeline.store.upkeep.importing import Times, import_clips
from stages.bars import ProgressBar


def import_features(arguments: argparse.Namespace) -> None:
    """Write a view of the files, and a manifest where there are labels; say how to train on them."""
    path, name = arguments.path, arguments.name
    out = arguments.out or Path("imported", name)
    clips = foreign_clips(path)
    rate = arguments.fps or usual_rate(clips[0])
    root = path if path.is_dir() else path.parent
    labelled = labels_beside(
        path,
        {clip.clip_id: clip.file.relative_to(root).as_posix() for clip in clips},
        split=arguments.split,
        rate=rate,
        val_share=arguments.val_share,
    )
    manifest = arguments.manifest or Path("manifests", f"{name}.csv")
    if labelled and manifest.exists():
        raise StoreError(f"{manifest} exists. Name another file: --manifest.")
    if labelled:
        check_clips(manifest, labelled.clips)
    with ProgressBar(total=len(clips), unit="clip", desc="import") as bar:
        import_clips(
            clips,
            out,
            name=name,
            origin={
                "made_by": arguments.made_by,
                "made_at": arguments.made_at,
                "known": dict(map(_known, arguments.known)),
            },
            times=Times(arguments.fps, arguments.first_seconds, labelled.durations if labelled else {}),
            axes=arguments.axes,
            lengths=labelled.lengths if labelled else {},
            on_clip=bar.update,
        )
    settings = {"extract.imported": out, "train.tap": name}
    if labelled:
        write_manifest(manifest, labelled.clips)
        settings = {"corpus.manifest": manifest, "corpus.root": root, **settings}
    print(f"{len(clips)} clips are in {out}. To train on them, set in params.yaml:")
    for key, value in settings.items():
        print(f"  {key}: {value}")


def _known(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise ConfigError(f"--known {text}: give a name and a text, as in --known network=I3D.")
    return name, value
