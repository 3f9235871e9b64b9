"""The arguments of `python -m stages.manifest`."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from pipeline.corpora import SEGMENTED

_FOLDER = """A clip is a video, an image, or a folder that holds images; its label is the name of the folder
that it lies in. If FOLDER holds train, val and test (FOLDER/train/<class>/<clip>), these are the splits.
Otherwise each class is split by --split, in an order that depends on --seed and the clips' paths alone.
With --labels, the clips are the sources (relative to FOLDER) that this CSV names; it may have any column of a
manifest, see manifests/README.md. Clips of one group, or of one file, are in one split."""
_UCF101 = """FOLDER is UCF-101 as unpacked (FOLDER/<class>/v_<class>_gXX_cYY.avi). gXX of a class is a group.
The lists have no val: --val-share of each class's groups of train become it."""
_KINETICS = """Files are named <youtube_id>_<start>_<end>.mp4 with times in six digits, in any folders below
FOLDER. If no CSV has a test split, val becomes test and --val-share of train becomes val."""
_HMDB51 = """FOLDER is hmdb51_org as unpacked (FOLDER/<class>/<video>.avi). Clips with the same title are a
group. The lists have no val: --val-share of each class's groups of train become it."""
_SSV2 = """FOLDER holds the videos <id>.webm. Without test-answers.csv among the lists, val becomes test
and --val-share of each class's clips of train becomes val."""
_CHARADES = """FOLDER holds the videos <id>.mp4. Each clip has all its classes as label, and its actions with
their times as frame_labels. Subjects are groups. The lists have no val: --val-share of the subjects of train
become it."""
_MSTCN = """FOLDER holds the videos of the data set, and --lists names its folder in MS-TCN's data.zip, with
mapping.txt, groundTruth and splits. Labels of frames become intervals. Subjects are groups. The bundles have
no val: --val-share of the subjects of train become it."""
_PROBE = """Opens every clip, reads the times of all its frames and decodes the first. Says how many frames
extract.sampling takes and for how many seconds, and which clips are broken or above extract.limits; then the
exit status is 1."""
_LOOK = """Opens clips for a few of their frames, and writes a page with pictures by class and split,
durations, frame rates, sizes and targets. Names what leaks: sources that are in several splits, and clips of
several splits that look alike, which are likely copies or cuts of a video. If something leaks or clips are
broken, the exit status is 1."""
_CLIPS = """how many clips of each class and split are opened (default: all; of more than 20,000 clips, as
many of each as make 20,000)"""
_GROUP = """which clips belong together: a column of --labels, or a regular expression whose first group (or
whole match) in the path below FOLDER names the group"""
_FRESH = "keep nothing of an existing --out; by default its splits and other columns stay"


def parse_options(description: str | None) -> argparse.Namespace:
    """The arguments of the command line; `command` is folder, probe or the name of a data set."""
    parser = argparse.ArgumentParser(prog="python -m stages.manifest", description=description)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    builder = argparse.ArgumentParser(add_help=False)
    builder.add_argument("folder", type=_folder, metavar="FOLDER", help="the corpus root")
    builder.add_argument("--out", type=_utf8, required=True, help="the manifest to write: .csv or .parquet")
    builder.add_argument(
        "--image-fps", type=_number(0, float("inf")), help="of folders of images (default: 1)"
    )
    builder.add_argument("--fresh", action="store_true", help=_FRESH)
    builder.add_argument("--seed", type=int, default=0, help="another seed, another split (default: 0)")
    official = argparse.ArgumentParser(add_help=False, parents=[builder])
    official.add_argument("--val-share", type=_number(0, 1), default=0.15, help="of train (default: 0.15)")

    own = commands.add_parser("folder", parents=[builder], description=_FOLDER, help="a tree of your own")
    own.add_argument("--labels", type=_file, help="CSV with the column source, and label, group, split, ...")
    own.add_argument("--group", metavar="PATTERN", help=_GROUP)
    own.add_argument(
        "--split",
        type=_number(0, 1),
        nargs=3,
        default=(0.7, 0.15, 0.15),
        metavar=("TRAIN", "VAL", "TEST"),
        help="shares of each class (default: 0.7 0.15 0.15)",
    )
    listed = argparse.ArgumentParser(add_help=False, parents=[official])
    listed.add_argument("--lists", type=_folder, required=True, help="the folder of the official lists")
    for name, description, num_splits, title in (
        ("ucf101", _UCF101, 3, "UCF101 by its lists"),
        ("hmdb51", _HMDB51, 3, "HMDB51 by its split files"),
        ("ssv2", _SSV2, 0, "Something-Something V2 by its JSON files"),
        ("charades", _CHARADES, 0, "Charades by its CSVs"),
        *((name, _MSTCN, facts.num_splits, "by MS-TCN's bundles") for name, facts in SEGMENTED.items()),
    ):
        parser_of = commands.add_parser(name, parents=[listed], description=description, help=title)
        if num_splits:
            splits = range(1, num_splits + 1)
            parser_of.add_argument(
                "--split",
                type=int,
                nargs="+",
                choices=splits,
                default=[1],
                help="official split (default: 1); several become columns split<N>, for `stages.folds`",
            )
        if name in SEGMENTED:
            parser_of.add_argument(
                "--fps",
                type=_number(0, float("inf")),
                default=SEGMENTED[name].fps,
                help="labels a second in groundTruth (default: %(default)g)",
            )
    kinetics = commands.add_parser("kinetics", parents=[official], description=_KINETICS, help="by its CSVs")
    kinetics.add_argument("--csv", type=_file, nargs="+", required=True, help="train.csv val.csv test.csv")
    reader = argparse.ArgumentParser(add_help=False)
    reader.add_argument("--manifest", type=Path, help="default: corpus.manifest of params.yaml")
    reader.add_argument("--root", type=Path, help="default: corpus.root of params.yaml")
    reader.add_argument("--threads", type=_count, default=os.cpu_count(), help="default: one a core")
    probe = commands.add_parser(
        "probe", parents=[reader], description=_PROBE, help="open every clip of a manifest"
    )
    probe.add_argument("--out", type=Path, help="CSV of clip_id,num_frames,seconds,height,width,problem")
    look = commands.add_parser("look", parents=[reader], description=_LOOK, help="a page of pictures; leaks")
    look.add_argument("--clips", type=_count, metavar="N", help=_CLIPS)
    look.add_argument("--out", type=Path, default=Path("reports/look.html"), help="default: %(default)s")
    look.add_argument("--json", action="store_true", help="print JSON")

    options = parser.parse_args()
    if options.command == "folder" and abs(sum(options.split) - 1) > 1e-6:
        own.error(f"--split {' '.join(map(str, options.split))}: give three shares that sum to 1")
    return options


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not a folder")
    return _utf8(text)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file")
    return Path(text)


def _utf8(text: str) -> Path:
    try:
        str(Path(text).resolve()).encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not UTF-8, so params.yaml can't name it. Rename it."
        ) from None
    return Path(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _number(least: float, most: float) -> Callable[[str], float]:
    def number(text: str) -> float:  # argparse names the function where the text is no number
        value = float(text)
        if not least < value < most:
            raise argparse.ArgumentTypeError(f"{text} is not between {least} and {most}")
        return value

    return number
