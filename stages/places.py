"""Where things are in a project. Of the journal, which params.yaml does not name, the environment says it."""

import logging
import os
from pathlib import Path

from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

FEATURES = Path("features")  # the view, an out of DVC
SETTINGS = Path("settings")  # a file a stage
CORPUS = SETTINGS / "corpus.yaml"  # where the corpus is
WEIGHTS = SETTINGS / "weights.yaml"  # which weights, and the digest of a source that is a file
SOURCES = Path("sources")  # the digest of each source of the manifest


def weights_path(arch: str) -> Path:
    """The weights file of a network."""
    return Path("weights") / f"{arch}.safetensors"


def journal_path() -> Path:
    """Where features are kept: one place for a workspace and all its queued experiments.

    Queued experiments run in folders of their own, in which DVC_ROOT names the workspace; a relative path
    starts there. Raises ConfigError when a file is in its place.
    """
    path = named_journal()
    if path.is_file():
        raise ConfigError(
            f"The journal {path} is a file, and must be a folder. Move the file away, or name another place:"
            " FRAMECACHE_JOURNAL=/another/folder."
        )
    return path


def named_journal() -> Path:
    """The journal's path, whatever is there."""
    return Path(os.environ.get("DVC_ROOT", "."), os.environ.get("FRAMECACHE_JOURNAL") or ".framecache")


def training_folder() -> Path:
    """Where unfinished trainings keep their states: in the journal, or elsewhere if that is read-only."""
    journal, own = journal_path(), Path(os.environ.get("DVC_ROOT", "."), ".framecache")
    folder = next(path for path in (journal / "training", *(journal / "training").parents) if path.exists())
    if os.access(folder, os.W_OK) or journal == own:
        return journal / "training"
    log.warning("%s can't be written: the state of this training is kept in %s.", journal, own / "training")
    return own / "training"
