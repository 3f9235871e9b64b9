"""Streams -> reports/streams.json: a digest of each stream's features, on which training depends."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.store import open_view, stream_folder
from pipeline.system.files import write_json
from stages import console
from stages.inputs import Inputs
from stages.places import FEATURES

DIGESTS = Path("reports/streams.json")


def main() -> None:
    """Write the digests of the streams that the settings name."""
    argparse.ArgumentParser(
        prog="python -m stages.streams",
        description=__doc__,
        epilog="Reads settings/streams.yaml and features/. Training depends on this file and on the features"
        " of its own tap, so that other taps come and go without training again.",
    ).parse_args()
    inputs = Inputs("streams")
    write_streams(inputs.values)
    inputs.check()


def write_streams(values: Mapping[str, Any], *, folder: Path = Path()) -> None:
    """Write the digests of the streams of settings/streams.yaml, of the features here, in a project `folder`.

    Raises MissingFeaturesError for a stream without features.
    """
    digests = {}
    for name in values["streams"]:
        with open_view(stream_folder(FEATURES / values["tap"], name)) as view:
            digests[name] = view.digest
    write_json(folder / DIGESTS, digests)


if __name__ == "__main__":
    console.run(main)
