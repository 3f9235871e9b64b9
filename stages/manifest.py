"""Corpus -> manifest: of a folder tree of your own, of UCF101, of Kinetics; and a look at every clip."""

import argparse
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline.corpora import (
    Corpus,
    folder_corpus,
    group_by_pattern,
    group_by_source,
    keep_previous,
    kinetics_corpus,
    labels_corpus,
    name_clips,
    split_classes,
    ucf101_corpus,
)
from pipeline.errors import ManifestError, PipelineError
from pipeline.manifest import SPLITS, Clip, column_names, read_manifest, write_manifest
from pipeline.system.files import write_atomically
from stages import console
from stages.manifest_probe import run_probe

log = logging.getLogger(__name__)

_MAX_LABELS_SHOWN = 30

_FOLDER = """A clip is a video, an image, or a folder that holds images; its label is the name of the folder
that it lies in. If FOLDER holds train, val and test (FOLDER/train/<class>/<clip>), these are the splits.
Otherwise each class is split by --split, in an order that depends on --seed and the clips' paths alone.
With --labels, the clips are the sources (relative to FOLDER) that this CSV names; it may have any column of a
manifest, see manifests/README.md. Clips of one group, or of one file, are in one split."""
_UCF101 = """FOLDER is UCF-101 as unpacked (FOLDER/<class>/v_<class>_gXX_cYY.avi). gXX of a class is a group.
The lists have no val: --val-share of each class's groups of train become it."""
_KINETICS = """Files are named <youtube_id>_<start>_<end>.mp4 with times in six digits, in any folders below
FOLDER. If no CSV has a test split, val becomes test and --val-share of train becomes val."""
_PROBE = """Opens every clip, reads the times of all its frames and decodes the first. Says how many frames
extract.sampling takes and for how many seconds, and which clips are broken or above extract.limits; then the
exit status is 1."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.manifest", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    folder = _command(commands, "folder", _folder, "a folder tree of your own", _FOLDER)
    folder.add_argument(
        "--split",
        type=float,
        nargs=3,
        default=(0.7, 0.15, 0.15),
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of each class (default: 0.7 0.15 0.15)",
    )
    folder.add_argument(
        "--labels", type=Path, help="CSV with the column source, and label, group, split, ..."
    )
    folder.add_argument(
        "--group",
        metavar="PATTERN",
        help="what belongs together: a column of --labels, or a regular expression whose first group (or"
        " whole match) in the path below FOLDER names the group",
    )

    ucf101 = _command(commands, "ucf101", _ucf101, "UCF101 by its official lists", _UCF101)
    ucf101.add_argument("--lists", type=Path, required=True, help="the folder with trainlist01.txt, ...")
    ucf101.add_argument("--split", type=int, choices=(1, 2, 3), default=1, help="official split (default: 1)")

    kinetics = _command(commands, "kinetics", _kinetics, "Kinetics by its official CSVs", _KINETICS)
    kinetics.add_argument("--csv", type=Path, nargs="+", required=True, help="train.csv val.csv test.csv")

    for command in (ucf101, kinetics):
        command.add_argument("--val-share", type=float, default=0.15, help="of train (default: 0.15)")
    for command in (folder, ucf101, kinetics):
        command.add_argument("folder", type=Path, metavar="FOLDER", help="the corpus root")
        command.add_argument(
            "--out", type=Path, required=True, help="the manifest to write: .csv or .parquet"
        )
        command.add_argument("--image-fps", type=float, help="rate of folders of images (default: 1)")
        command.add_argument(
            "--fresh",
            action="store_true",
            help="keep nothing of an existing --out; by default its splits and other columns stay",
        )
        command.add_argument("--seed", type=int, default=0, help="another seed, another split (default: 0)")

    look = _command(commands, "probe", run_probe, "open every clip of a manifest", _PROBE)
    look.add_argument("--manifest", type=Path, help="default: corpus.manifest of params.yaml")
    look.add_argument("--root", type=Path, help="default: corpus.root of params.yaml")
    look.add_argument(
        "--out", type=Path, help="CSV to write: clip_id,num_frames,seconds,height,width,problem"
    )
    look.add_argument("--threads", type=int, default=os.cpu_count(), help="default: one a core")

    options = parser.parse_args()
    options.run(options)


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], help_: str, epilog: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=help_, description=epilog)
    command.set_defaults(run=run, error=command.error)
    return command


def _folder(options: argparse.Namespace) -> None:
    if not (min(options.split) > 0 and abs(sum(options.split) - 1) < 1e-6):
        options.error(f"--split {' '.join(map(str, options.split))}: give three shares above 0 that sum to 1")
    _check_folder(options)
    if options.labels and not options.labels.is_file():
        options.error(f"--labels {options.labels} is not a file")
    group = options.group
    is_column = bool(group and options.labels) and group in column_names(options.labels)
    try:
        pattern = re.compile(group) if group and not is_column else None
    except re.error as error:
        options.error(f"--group {group}: neither a column of --labels nor a regular expression: {error}")
    if options.labels:
        corpus = labels_corpus(options.labels, options.folder, group_column=group if is_column else None)
    else:
        corpus = folder_corpus(options.folder)
    clips = group_by_pattern(corpus.clips, pattern) if pattern else list(corpus.clips)
    _write(clips, options, missing=corpus.missing, shares=options.split)


def _ucf101(options: argparse.Namespace) -> None:
    _check_folder(options)
    corpus = ucf101_corpus(
        options.folder,
        lists=options.lists,
        split=options.split,
        val_share=options.val_share,
        seed=options.seed,
    )
    _report_missing(corpus, options)
    _write(corpus.clips, options)


def _kinetics(options: argparse.Namespace) -> None:
    _check_folder(options)
    for path in options.csv:
        if not path.is_file():
            options.error(f"--csv {path} is not a file")
    corpus = kinetics_corpus(
        options.folder, tables=options.csv, val_share=options.val_share, seed=options.seed
    )
    _report_missing(corpus, options)
    _write(corpus.clips, options)


def _check_folder(options: argparse.Namespace) -> None:
    if not options.folder.is_dir():
        options.error(f"{options.folder} is not a folder")
    if not 0 < getattr(options, "val_share", 0.5) < 1:
        options.error(f"--val-share {options.val_share}: give a share between 0 and 1")
    if options.image_fps is not None and not 0 < options.image_fps < math.inf:
        options.error(f"--image-fps {options.image_fps}: give a rate above 0")
    for path in (options.folder.resolve(), options.out):
        try:
            str(path).encode()
        except UnicodeEncodeError:
            options.error(f"{str(path)!r} is not UTF-8, so params.yaml can't name it. Rename it.")


def _report_missing(corpus: Corpus, options: argparse.Namespace) -> None:
    """Say how many videos of the lists are not there, and write their names beside the manifest."""
    path = options.out.with_suffix(".missing.txt")
    path.unlink(missing_ok=True)
    if not corpus.missing:
        return
    num_listed = len(corpus.clips) + len(corpus.missing)
    if not corpus.clips:
        raise ManifestError(
            f"None of the {num_listed} videos of the lists is below {options.folder}. The first would be"
            f" {corpus.missing[0]}."
        )
    write_atomically(path, "".join(f"{name}\n" for name in corpus.missing).encode())
    log.warning(
        "%d of %d videos of the lists are not below %s. Their names are in %s.",
        len(corpus.missing),
        num_listed,
        options.folder,
        path,
    )


def _write(
    clips: Sequence[Clip],
    options: argparse.Namespace,
    *,
    missing: Sequence[str] = (),
    shares: Sequence[float] | None = None,
) -> None:
    """Write the manifest: with what its previous state says; split by `shares` where it has no splits."""
    sequences = {  # of images
        clip.sources for clip in clips if len(clip.sources) > 1 or (options.folder / clip.sources[0]).is_dir()
    }
    if rate := options.image_fps:
        clips = [
            replace(clip, image_fps=rate) if clip.sources in sequences and clip.image_fps == 1 else clip
            for clip in clips
        ]
    previous = [] if options.fresh or not options.out.exists() else _read_previous(options.out)
    clips = name_clips(keep_previous(clips, previous, missing=missing))
    if shares:
        clips = split_classes(group_by_source(clips), shares=shares, seed=options.seed)
    try:
        write_manifest(options.out, clips)
    except ManifestError as error:
        hint = ""
        if shares and {clip.split for clip in clips} < set(SPLITS):
            num_units = len({clip.group or clip.clip_id for clip in clips})
            hint = f"\nThese are {num_units} groups or single clips: a class needs three to be in all splits."
        if previous:
            hint += f"\n{options.out} is there: its splits and groups were kept. --fresh makes all anew."
        raise ManifestError(f"{error}{hint}") from None
    _print_counts(clips)
    if previous:
        num_kept = len({clip.clip_id for clip in clips} & {clip.clip_id for clip in previous})
        print(
            f"\n{num_kept} clips were in {options.out} and keep their splits and other columns (not with"
            f" --fresh); {len(clips) - num_kept} are new."
        )
    num_assumed = sum(clip.sources in sequences and clip.image_fps == 1 for clip in clips)
    if num_assumed and not rate:
        log.info(
            "%d clips are images in sequence, taken as 1 image a second: with extract.sampling {fps: 5} each"
            " would come 5 times. --image-fps gives their true rate.",
            num_assumed,
        )
    print(f"\n{options.out}: {len(clips)} clips. In params.yaml (and then `stages.manifest probe`):\n")
    corpus = {"manifest": str(options.out), "root": str(options.folder.resolve())}
    print(yaml.safe_dump({"corpus": corpus}, allow_unicode=True, width=math.inf), end="")


def _read_previous(path: Path) -> list[Clip]:
    try:
        return list(read_manifest(path))
    except PipelineError as error:
        raise ManifestError(
            f"{path} is there, but its splits and columns can't be kept. Correct it, or write it anew with"
            f" --fresh. {error}"
        ) from None


def _print_counts(clips: Sequence[Clip]) -> None:
    counts = Counter((clip.label or "", clip.split) for clip in clips)
    labels = sorted({label for label, _ in counts})
    width = max(len(label) for label in ("all classes", *labels))
    print("  ".join([f"{'class':{width}}", *(f"{split:>7}" for split in SPLITS)]))
    if len(labels) <= _MAX_LABELS_SHOWN and any(labels):
        for label in labels:
            print("  ".join([f"{label:{width}}", *(f"{counts[label, split]:7}" for split in SPLITS)]))
    totals = Counter(clip.split for clip in clips)
    print("  ".join([f"{'all classes':{width}}", *(f"{totals[split]:7}" for split in SPLITS)]))


if __name__ == "__main__":
    console.run(main)
