"""`python -m stages.store verify`, `repair` and `gc`: damage, and what nothing needs."""

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DamagedError, StoreError
from pipeline.store import Journal
from pipeline.store.upkeep.care import (
    Check,
    Damage,
    file_identity,
    journal_checks,
    repair,
    size_bytes,
    verify,
    view_checks,
)
from pipeline.store.upkeep.gc import Garbage, Shard, find_garbage, remove_garbage
from stages import console
from stages.bars import ProgressBar
from stages.places import FEATURES, journal_path
from stages.project.damage import damaged_objects
from stages.project.needs import needs
from stages.store_words import AddVerb, check_there, size_text

log = logging.getLogger(__name__)


def add_verbs(add: AddVerb) -> None:
    """Add `verify`, `repair` and `gc`."""
    verb = add("verify", _verify, "read every file and name those that are damaged, and their clips")
    verb.add_argument("--view", type=Path, default=FEATURES, help="folder of the view (%(default)s)")

    verb = add("repair", _repair, "remove what is damaged from journal, view and DVC's cache")
    verb.add_argument("--view", type=Path, default=FEATURES, help="folder of the view (%(default)s)")

    verb = add("gc", _gc, "show the features that nothing needs; with --yes, remove them")
    verb.add_argument("--yes", action="store_true", help="remove them from the journal")
    verb.add_argument(
        "--project",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="keep what this other project needs, too, which shares the journal; may be repeated",
    )
    verb.add_argument(
        "--training-days",
        type=float,
        default=30,
        metavar="DAYS",
        help="states of unfinished trainings and results of sweeps that are older go, too (%(default)s)",
    )


def _verify(arguments: argparse.Namespace) -> None:
    check_there(arguments.view)
    journal, view = journal_path(), arguments.view
    checks = [*(journal_checks(journal) if journal.exists() else []), *view_checks(view)]
    version = file_identity(view) if view.exists() else None
    with _progress(checks) as bar:
        damages = verify(checks, on_bytes=bar.update)
    if version != (file_identity(view) if view.exists() else None):
        raise StoreError(f"{view} was published anew meanwhile. Run the same command again.")
    _print_damages(damages)
    if damages:
        raise DamagedError(f"{len(damages)} files are damaged.")
    print(f"{len(checks)} files are as they were written.")


def _repair(arguments: argparse.Namespace) -> None:
    check_there(arguments.view)
    journal, view = journal_path(), arguments.view
    with _progress([*journal_checks(journal), *view_checks(view)]) as bar:
        damages = repair(
            journal,
            view=view,
            find_copies=lambda files: damaged_objects(files, view=view),
            on_wait=_say_waiting,
            on_bytes=bar.update,
        )
    _print_damages(damages)
    if damages:
        print(f"Removed {len(damages)} files from journal, view and DVC's cache. Now run `dvc repro`.")
    else:
        print("Nothing is damaged.")


def _print_damages(damages: Sequence[Damage]) -> None:
    for damage in damages:
        print(f"damaged: {damage}")


def _gc(arguments: argparse.Namespace) -> None:
    journal = _existing_journal()
    for project in arguments.project:
        if not project.is_dir():
            raise StoreError(f"--project {project} is no folder. Correct the path.")
    if "FRAMECACHE_JOURNAL" in os.environ and not arguments.project:
        log.warning("If other projects share %s, name them with --project.", journal.path)
    # Only looking needs no lock: it would wait for an extraction's end.
    lock = journal.exclusive(on_wait=_say_waiting) if arguments.yes else contextlib.nullcontext()
    with lock:
        found = [need for project in (Path(), *arguments.project) for need in needs(project)]
        garbage = find_garbage(journal, found, now_seconds=time.time(), training_days=arguments.training_days)
        print("Kept is what these need:")
        for need in found:
            print(f"  {need.name}")
        _print_garbage(garbage)
        freed, shared = size_text(garbage.freed_bytes), size_text(garbage.shared_bytes)
        if arguments.yes:
            remove_garbage(journal, garbage)
    print(f"{'Freed' if arguments.yes else 'To free'}: {freed} at once.")
    if garbage.shared_bytes:
        projects = f" --projects {' '.join(map(str, arguments.project))}" if arguments.project else ""
        print(f"{shared} more are shared with DVC's cache; to free them, run then:")
        print(f"  dvc gc --workspace --all-commits --all-experiments{projects}")
    if not arguments.yes:
        print("Nothing was removed yet: --yes does it.")


def _print_garbage(garbage: Garbage) -> None:
    def total(shards: Sequence[Shard]) -> str:
        return f"{len(shards)} shards, {size_text(sum(shard.size_bytes for shard in shards))}"

    console.print_table(
        [
            {
                "arch": each.contract.arch,
                "tap": each.contract.name,
                "contract": each.contract.digest()[:16],
                "layout": each.layout_name,
                "keep": total(each.kept),
                "remove": total(each.removed),
                "shared": total([shard for shard in each.removed if shard.is_shared]),
            }
            for each in garbage.sets
        ]
    )
    for path in garbage.leftovers:
        print(f"left behind: {path}")
    if garbage.training:
        print(f"left behind by training and sweeps: {len(garbage.training)} files and folders.")


def _existing_journal() -> Journal:
    path = journal_path()
    if not path.exists():
        raise StoreError(
            f"No journal at {path}. Run this in the repository's root, or set FRAMECACHE_JOURNAL."
        )
    return Journal(path)


def _progress(checks: Sequence[Check]) -> ProgressBar:
    return ProgressBar(total=size_bytes(checks), unit="B", unit_scale=True, unit_divisor=1024, desc="verify")


def _say_waiting(holder: str) -> None:
    log.info("Waiting for a run that uses the journal: %s.", holder)
