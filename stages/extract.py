"""Frames -> feature maps: runs the frozen network over every clip that has no features yet."""

import argparse
import logging
import os
import sys
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.system.supervisor import supervise
from stages import console
from stages.places import FEATURES

log = logging.getLogger(__name__)


def main() -> None:
    """Show the plan, or extract in a process that is supervised."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.extract",
        description=__doc__,
        epilog="Reads settings/extract.yaml, the manifest and weights/<arch>.safetensors; writes"
        " features/<tap>/, features/quarantine.csv and reports/extract.json. Features are kept in"
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
    status = supervise(command)
    if status and not FEATURES.exists() and _dvc_has_features():
        log.warning(
            "%s/ is missing: DVC removes it before the stage. `dvc checkout %s` brings the last one back.",
            FEATURES,
            FEATURES,
        )
    sys.exit(status)


def _dvc_has_features() -> bool:
    """Whether `dvc checkout` brings back what dvc.lock names. A queued run's folder is left to DVC."""
    if Path(os.environ.get("DVC_ROOT", ".")).resolve() != Path.cwd():
        return False
    from stages.project.cache import tracked_files  # takes a second to import

    try:
        files = tracked_files(FEATURES)
    except StoreError:
        return False
    return bool(files) and all(file.exists() for file in files.values())


if __name__ == "__main__":
    console.run(main)
