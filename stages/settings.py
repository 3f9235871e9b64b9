"""Settings: params.yaml over the defaults in code -> one small file a stage; and what the sources are."""

import argparse
import logging
from functools import partial
from pathlib import Path

from pipeline.manifest import Manifest, read_manifest
from stages import console
from stages.bars import Bars
from stages.params import Params, read_params
from stages.places import SOURCES, journal_path
from stages.project.visible import corpus_root, visible_manifest
from stages.resolution import check_together, resolved, write_settings

log = logging.getLogger(__name__)


def main() -> None:
    """Check all settings and write them; read the sources that have changed."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.settings",
        description=__doc__,
        epilog="Reads params.yaml and the manifest; writes settings/<stage>.yaml, the settings that matter to"
        " this stage with a digest of its code, and sources, the digest of each source. A stage runs again"
        " when its own file has changed. Where a source is not on this machine, its recorded digest stands.",
    )
    parser.add_argument(
        "--read-sources",
        action="store_true",
        help="read all sources again; by default only those whose size, times or inode have changed",
    )
    arguments = parser.parse_args()
    params, manifest = settle()
    record_sources(manifest, root=corpus_root(params.corpus.root), reread=arguments.read_sources)


def settle() -> tuple[Params, Manifest]:
    """Write the settings of each stage.

    Raises ConfigError and ManifestError for what is wrong, before anything is computed.
    """
    params = read_params()
    manifest = read_manifest(visible_manifest(params.corpus.manifest))
    check_together(params, manifest)
    write_settings(resolved(params))
    return params, manifest


if __name__ == "__main__":
    console.run(main)
