"""Frames -> feature maps: runs the frozen network over every clip that has no features yet."""

import argparse
import sys

from pipeline.supervisor import supervise
from stages import console


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.extract",
        description=__doc__,
        epilog="Reads corpus.*, weights.arch and extract.* from params.yaml and weights/<arch>.safetensors;"
        " writes features/<tap>/, features/quarantine.csv and metrics/extract.json. Features are kept in"
        " .framecache/ (or where FRAMECACHE_JOURNAL says), so nothing is computed twice. Ctrl-C and SIGTERM"
        " commit what is complete and exit with 130 or 143; the same command goes on from there.",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="say what a run would compute, how long that takes and how much disk; nothing is written",
    )
    parser.add_argument(
        "--retry-quarantined",
        action="store_true",
        help="try the clips again that the decoder rejected before",
    )
    arguments = parser.parse_args()
    if arguments.plan:
        from stages.extract_plan import show_plan  # takes seconds to import

        show_plan()
        return
    command = [sys.executable, "-m", "stages.extraction"]
    if arguments.retry_quarantined:
        command.append("--retry-quarantined")
    sys.exit(supervise(command))


if __name__ == "__main__":
    console.run(main)
