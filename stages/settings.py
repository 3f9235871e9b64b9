"""Settings: params.yaml over the defaults in code -> one small file a stage; and what the sources are."""

import argparse
import logging
from functools import partial
from pathlib import Path

from pipeline.errors import ConfigError, PipelineError, few
from pipeline.manifest import Manifest, check_sources, read_manifest
from pipeline.manifest.recorded import read_sources, scan_sources, write_sources
from pipeline.settings.corpus import CorpusConfig
from pipeline.settings.training import TrainConfig
from pipeline.store import Journal
from pipeline.store.view import INDEX_NAME
from pipeline.system.files import combined_digest, file_digest
from stages import console
from stages.bars import Bars
from stages.digits import FOLDERS
from stages.machine import read_machine
from stages.params import PARAMS, Params, read_params
from stages.places import SETTINGS, SOURCES, journal_path
from stages.project.sharing import share_journal
from stages.project.visible import corpus_root, imported_features, visible_manifest
from stages.resolution import check_together, resolved, write_settings
from stages.yaml_files import read_mapping

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
    if params.extract.imported:
        record_imported(params.extract.imported)
    else:
        record_sources(params.corpus, manifest, reread=arguments.read_sources)


def check_settings() -> tuple[Params, Manifest]:
    """All settings, and the manifest. Raises ConfigError and ManifestError for what is wrong."""
    params = read_params()
    manifest = read_manifest(visible_manifest(params.corpus.manifest))
    check_together(params, manifest)
    return params, manifest


def settle() -> tuple[Params, Manifest]:
    """Check all settings as `check_settings` does, and machine.yaml; write those of each stage."""
    params, manifest = check_settings()
    read_machine()
    write_settings(resolved(params))
    return params, manifest


def edited_settings(trained: TrainConfig) -> list[str]:
    """The settings that params.yaml no longer asks for as they are in settings/ and in a trained model."""
    try:
        asked = resolved(read_params(), clips=lambda _: "")
    except PipelineError:
        return [str(PARAMS)]
    used = {stage: read_mapping(SETTINGS / f"{stage}.yaml") for stage in asked}
    used["recurrent"]["train"] = trained.live("recurrent")
    no_files = {"code": "", "digest": "", "clips": ""}  # of params.yaml alone
    return [stage for stage, values in asked.items() if {**values, **no_files} != {**used[stage], **no_files}]


def record_sources(corpus: CorpusConfig, manifest: Manifest, *, reread: bool = False) -> None:
    """Write the digest of each source: as read here, or else as recorded before.

    Raises ManifestError where no source can be read and none is recorded, and ConfigError where the embedded
    corpus is not rendered.
    """
    journal, root = journal_path(), corpus_root(corpus.root)
    share_journal(journal)
    digests = Journal(journal).digest_cache()
    with Bars("B") as bars:
        found = scan_sources(
            manifest.sources(),
            root=root,
            digests=digests,
            recorded=read_sources(SOURCES),
            reread=reread,
            on_progress=partial(bars.show, "read sources", unit="B", delay=1),
        )
    digests.save()
    if found.unknown and Path(corpus.root) in FOLDERS.values():
        raise ConfigError(
            f"{len(found.unknown)} files of the embedded corpus are not in {root}. Render them:"
            f" `python -m stages.digits {corpus.manifest}`."
        )
    if not found.contents:
        check_sources(manifest, root=root)
    for names, state in (
        (found.recorded, "their recorded digests stand"),
        (found.unknown, "they were never read, so extract will fail for their clips"),
    ):
        if names:
            count = f"{len(names)} of {len(found.contents) + len(found.unknown)} sources"
            log.warning("%s are not in %s, and %s: %s.", count, root, state, few(names, at_most=3))
    write_sources(SOURCES, found.contents)


def record_imported(folder: str) -> None:
    """Write the digest of imported features: as they are here, or else as recorded before.

    Raises ConfigError where there are none and none is recorded.
    """
    path = imported_features(folder)
    if indexes := sorted(path.glob(f"*/{INDEX_NAME}")):
        write_sources(SOURCES, {folder: combined_digest(list(map(file_digest, indexes)))})
    elif folder not in read_sources(SOURCES):
        raise ConfigError(
            f"extract.imported: there are no features in {path}. `python -m stages.store import` makes them."
        )


if __name__ == "__main__":
    console.run(main)
