"""What the verbs of `python -m stages.store` share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pipeline.errors import MissingFeaturesError
from stages.bars import ProgressBar
from stages.places import journal_path

# Adds a verb with its name, what it runs and what it is for; its arguments are then added to what it returns.
AddVerb: TypeAlias = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]


def check_there(view: Path) -> None:
    """Raise MissingFeaturesError when there are neither a journal nor this view."""
    if not view.exists() and not journal_path().exists():
        raise MissingFeaturesError(f"There is no journal {journal_path()} and no view {view}.")


def size_text(num_bytes: float) -> str:
    """A size for people, in units of 1024: `39.9MB`."""
    return f"{ProgressBar.format_sizeof(num_bytes, divisor=1024)}B"
