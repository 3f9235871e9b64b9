"""`python -m stages.store check` and `dump`: features to prove and to exchange."""

import argparse
from pathlib import Path

from pipeline.store import open_view
from pipeline.store.upkeep.dump import DUMPS
from stages.bars import ProgressBar
from stages.store_words import AddVerb


def add_verbs(add: AddVerb) -> None:
    """Add `check` and `dump`."""
    verb = add(
        "check",
        _check,
        "compute some clips again, from source and weights on this machine, and compare; `verify` reads all"
        " files instead and looks for damage",
    )
    verb.add_argument(
        "tap", type=Path, nargs="*", help="features of a tap, e.g. features/layer3; default: all"
    )
    verb.add_argument(
        "--clips", type=int, default=5, metavar="N", help="so many, evenly spaced (%(default)s)"
    )
    verb.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        metavar="X",
        help="exit with 1 when the distance, relative to the features' norm, is larger (%(default)s)",
    )

    verb = add("dump", _dump, "write clips to files that need no framecache")
    verb.add_argument("tap", type=Path, help="the features of a tap, e.g. features/layer3")
    verb.add_argument("clip", nargs="*", help="clips to write; all by default")
    verb.add_argument("--out", type=Path, required=True, help="new folder; for hdf5, the new file")
    verb.add_argument("--format", choices=DUMPS, default="npy", help="(%(default)s)")


def _check(arguments: argparse.Namespace) -> None:
    from stages.store_check import check  # torch takes seconds to import

    check(arguments)


def _dump(arguments: argparse.Namespace) -> None:
    with open_view(arguments.tap) as view:
        clip_ids = arguments.clip or view.clip_ids()
        with ProgressBar(total=len(clip_ids), unit="clip", desc="dump") as bar:
            DUMPS[arguments.format](view, clip_ids, arguments.out, on_clip=bar.update)
    print(f"{len(clip_ids)} clips are in {arguments.out}.")
