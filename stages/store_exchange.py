"""`python -m stages.store check`, `import`, `dump` and `card`: features to prove and to exchange."""

import argparse
import math
from pathlib import Path

from pipeline.store.upkeep.card import UNKNOWN
from pipeline.store.upkeep.dump import FORMATS
from pipeline.store.upkeep.foreign import AXES
from stages.store_words import AddVerb


def add_verbs(add: AddVerb) -> None:
    """Add `check`, `import`, `card` and `dump`."""
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
        "--against",
        type=Path,
        metavar="PATH",
        help="compare with these instead: features of another store, or files as for import; and try out why"
        " they differ",
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

    verb = add("import", _import, "make a view of features that another program made")
    verb.add_argument(
        "path",
        type=Path,
        help="folder with a file a clip (.npy, .npz, .pt, .pkl), or one file of"
        " all clips (also .h5); labels and splits of MS-TCN and ActionFormer are read, too",
    )
    verb.add_argument("--name", required=True, help="of the features, in place of a tap")
    verb.add_argument("--out", type=Path, help="new folder; default: imported/NAME")
    verb.add_argument(
        "--axes", choices=AXES, help="of a clip's array: T time, D features; default: by the shapes"
    )
    verb.add_argument("--fps", type=_positive, help="frames a second, where the files have no times")
    verb.add_argument(
        "--first-seconds", type=float, default=0, metavar="S", help="time of the first (%(default)s)"
    )
    verb.add_argument("--made-by", metavar="TEXT", help="people, a paper or an address")
    verb.add_argument("--made-at", metavar="TEXT", help="when")
    verb.add_argument(
        "--known",
        action="append",
        default=[],
        metavar="NAME=TEXT",
        help="what else is known of how they were made, e.g. network=I3D; may be given several times",
    )
    verb.add_argument(
        "--manifest", type=Path, help="to be written, if there are labels; default: manifests/NAME.csv"
    )
    verb.add_argument("--split", type=int, default=1, help="of MS-TCN's bundles (%(default)s)")
    verb.add_argument(
        "--val-share", type=float, default=0.15, help="of train, if no clip is in val (%(default)s)"
    )

    verb = add("card", _card, "write README.md beside dumped features: what they are, and how they were made")
    verb.add_argument("tap", type=Path, help="the features of a tap, e.g. features/layer3")
    verb.add_argument("--beside", type=Path, required=True, metavar="PATH", help="the dumped folder or file")
    verb.add_argument("--title", help="default: the name of PATH")
    verb.add_argument("--manifest", type=Path, help="of labels and splits; default: that of params.yaml")
    for option, of in (("", "the features"), ("video-", "the videos"), ("weights-", "the weights")):
        verb.add_argument(
            f"--{option}license", default=UNKNOWN, metavar="ID", help=f"of {of}, e.g. cc-by-4.0"
        )

    verb = add("dump", _dump, "write clips to files that need no framecache")
    verb.add_argument("tap", type=Path, help="the features of a tap, e.g. features/layer3")
    verb.add_argument("clip", nargs="*", help="clips to write; all by default")
    verb.add_argument("--out", type=Path, required=True, help="new folder; for hdf5, the new file")
    verb.add_argument("--format", choices=FORMATS, default="npy", help="(%(default)s)")
    verb.add_argument("--manifest", type=Path, help="of labels and splits; default: that of params.yaml")


def _check(arguments: argparse.Namespace) -> None:
    from stages.store_check import check  # torch takes seconds to import

    check(arguments)


def _positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def _import(arguments: argparse.Namespace) -> None:
    from stages.store_import import import_features  # seconds, too

    import_features(arguments)


def _card(arguments: argparse.Namespace) -> None:
    from stages.store_card import write_card

    write_card(arguments)


def _dump(arguments: argparse.Namespace) -> None:
    from stages.store_dump import dump_features

    dump_features(arguments)
