"""Corpus -> manifest: of a folder tree of your own, of UCF101, of Kinetics; and a look at every clip."""

import argparse
import csv
import io
import logging
import os
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from pipeline.contract import Sampling
from pipeline.corpora import Corpus, folder_corpus, kinetics_corpus, ucf101_corpus
from pipeline.errors import DecodeError, ManifestError
from pipeline.files import write_atomically
from pipeline.frames import ClipInfo, Limits, clip_range, probe
from pipeline.manifest import SPLITS, Clip, read_manifest, write_manifest
from pipeline.parallel import in_threads
from stages import console
from stages.params import CorpusConfig, load_section

log = logging.getLogger(__name__)

_MAX_LABELS_SHOWN = 30

_FOLDER = """A clip is a video, an image, or a folder that holds images; its label is the name of the folder
that it lies in. If FOLDER holds train, val and test (FOLDER/train/<class>/<clip>), these are the splits.
Otherwise each class is split by --split, in an order that depends on --seed and the clips' paths alone.
With --labels, the clips are the sources that this CSV names (columns: source,label; relative to FOLDER)."""
_UCF101 = """FOLDER is UCF-101 as unpacked (FOLDER/<class>/v_<class>_gXX_cYY.avi). gXX of a class is a group.
The lists have no val: --val-share of each class's groups of train become it."""
_KINETICS = """Files are named <youtube_id>_<start>_<end>.mp4 with times in six digits, in any folders below
FOLDER. If no CSV has a test split, val becomes test and --val-share of train becomes val."""
_PROBE = """Opens every clip, reads the times of all its frames and decodes the first. Says how many frames
extract.sampling takes and for how many seconds, and which clips are broken or above extract.limits; then the
exit status is 1."""


class ProbeConfig(BaseModel):
    """What of the section `extract` decides how many frames a clip has."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    sampling: Sampling = Sampling()
    limits: Limits = Limits()


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
    folder.add_argument("--labels", type=Path, help="CSV with the columns source,label")

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
        command.add_argument("--seed", type=int, default=0, help="another seed, another split (default: 0)")

    look = _command(commands, "probe", _probe, "open every clip of a manifest", _PROBE)
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
    if min(options.split) <= 0 or abs(sum(options.split) - 1) > 1e-6:
        options.error(f"--split {' '.join(map(str, options.split))}: give three shares above 0 that sum to 1")
    _check_folder(options)
    if options.labels and not options.labels.is_file():
        options.error(f"--labels {options.labels} is not a file")
    clips = folder_corpus(options.folder, labels=options.labels, shares=options.split, seed=options.seed)
    _write(clips, options)


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


def _write(clips: Sequence[Clip], options: argparse.Namespace) -> None:
    write_manifest(options.out, clips)
    _print_counts(clips)
    print(f"\n{options.out}: {len(clips)} clips. In params.yaml (and then `stages.manifest probe`):\n")
    print(f"corpus:\n  manifest: {options.out}\n  root: {options.folder.resolve()}")


def _print_counts(clips: Sequence[Clip]) -> None:
    counts = Counter((clip.label or "", clip.split) for clip in clips)
    labels = sorted({label for label, _ in counts})
    width = max(len(label) for label in ("all classes", *labels))
    print("  ".join([f"{'class':{width}}", *(f"{split:>7}" for split in SPLITS)]))
    if len(labels) <= _MAX_LABELS_SHOWN:
        for label in labels:
            print("  ".join([f"{label:{width}}", *(f"{counts[label, split]:7}" for split in SPLITS)]))
    totals = Counter(clip.split for clip in clips)
    print("  ".join([f"{'all classes':{width}}", *(f"{totals[split]:7}" for split in SPLITS)]))


def _probe(options: argparse.Namespace) -> None:
    corpus = load_section("corpus", CorpusConfig)
    config = load_section("extract", ProbeConfig)
    root = options.root or Path(corpus.root)
    manifest = read_manifest(options.manifest or Path(corpus.manifest))

    def look(clip: Clip) -> ClipInfo | str:
        try:
            return probe(**clip_range(clip, root=root), sampling=config.sampling, limits=config.limits)
        except (DecodeError, OSError) as error:
            return str(error)

    found: dict[str, ClipInfo] = {}
    broken: dict[str, str] = {}
    with tqdm(total=len(manifest), unit="clip", desc="probe") as bar:
        for clip, info in in_threads(lambda clip: (clip, look(clip)), manifest, num_threads=options.threads):
            if isinstance(info, ClipInfo):
                found[clip.clip_id] = info
            else:
                broken[clip.clip_id] = info
                bar.set_postfix_str(f"{len(broken)} broken", refresh=False)
            bar.update()
    if options.out:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["clip_id", *(field.name for field in fields(ClipInfo)), "problem"])
        writer.writerows([clip_id, *astuple(info), ""] for clip_id, info in found.items())
        writer.writerows([clip_id, *[""] * len(fields(ClipInfo)), broken[clip_id]] for clip_id in broken)
        write_atomically(options.out, text.getvalue().encode())
    if found:
        _print_summary(list(found.values()))
    if broken:
        lines = [f"{clip_id}: {problem}" for clip_id, problem in broken.items()]
        raise ManifestError("\n  ".join([f"{len(broken)} of {len(manifest)} clips are broken:", *lines]))


def _print_summary(found: Sequence[ClipInfo]) -> None:
    num_frames = [info.num_frames for info in found]
    sizes = Counter((info.width, info.height) for info in found).most_common()
    hours = sum(info.seconds for info in found) / 3600
    print(f"{len(found)} clips, {sum(num_frames)} frames, {hours:.2f} hours")
    print(f"frames a clip: {min(num_frames)} to {max(num_frames)}, median {statistics.median(num_frames):g}")
    shown = ", ".join(f"{width} x {height} ({count})" for (width, height), count in sizes[:8])
    print(f"frame sizes: {shown}{', ...' if len(sizes) > 8 else ''}")


if __name__ == "__main__":
    console.run(main)
