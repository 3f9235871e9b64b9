"""Looks after stored features: inspect, verify, repair, gc, dump."""

import argparse
import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.errors import DamagedError, MissingFeaturesError, StoreError
from pipeline.store import Journal, open_view
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
from pipeline.store.upkeep.dump import DUMPS
from pipeline.store.upkeep.gc import Garbage, Shard, find_garbage, remove_garbage
from pipeline.store.upkeep.summary import FeatureSet, journal_sets, view_sets
from stages import console
from stages.bars import ProgressBar
from stages.places import FEATURES, journal_path
from stages.project.damage import damaged_objects
from stages.project.needs import needs

log = logging.getLogger(__name__)


def main() -> None:
    """Run the verb that the arguments name."""
    arguments = _parser().parse_args()
    arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.store",
        description=__doc__,
        epilog="Run it in the repository's root. Features are in .framecache/, or where"
        " FRAMECACHE_JOURNAL says.",
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, run: object, text: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=text, description=text)
        verb.set_defaults(run=run)
        return verb

    verb = add("inspect", _inspect, "list the features in journal and view")
    verb.add_argument("--view", type=Path, default=FEATURES, help="folder of the view (%(default)s)")
    verb.add_argument("--json", action="store_true", help="print JSON")

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

    verb = add("dump", _dump, "write clips to files that need no framecache")
    verb.add_argument("tap", type=Path, help="the features of a tap, e.g. features/layer3")
    verb.add_argument("clip", nargs="*", help="clips to write; all by default")
    verb.add_argument("--out", type=Path, required=True, help="new folder; for hdf5, the new file")
    verb.add_argument("--format", choices=DUMPS, default="npy", help="(%(default)s)")
    return parser


def _inspect(arguments: argparse.Namespace) -> None:
    _check_there(arguments.view)
    sets = journal_sets(journal_path()) + view_sets(arguments.view)
    if arguments.json:
        print(json.dumps([_to_json(each) for each in sets], indent=1, allow_nan=False))
    elif sets:
        console.print_table([_to_row(each, arguments.view) for each in sets])
    else:
        print("No features yet: `dvc repro extract` makes them.")


def _to_json(each: FeatureSet) -> dict[str, object]:
    return {
        "path": str(each.path),
        "contract": each.contract.model_dump(mode="json"),
        "layout": asdict(each.layout),
        "clips": each.num_clips,
        "rows": each.num_rows,
        "shards": each.num_shards,
        "bytes": each.size_bytes,
        "changed_seconds": each.changed_seconds,
    }


def _to_row(each: FeatureSet, view: Path) -> dict[str, str]:
    contract = each.contract
    height, width = contract.preprocessing.crop_size
    return {
        "where": str(each.path) if each.path.is_relative_to(view) else "journal",
        "arch": contract.arch,
        "weights": contract.weights_sha256[:8],
        "tap": contract.name,
        "pooling": contract.pooling,
        "sampling": str(contract.model_dump()["sampling"]),
        "input": f"{height}x{width}",
        "dtype": contract.dtype,
        "layout": each.layout.name,
        "clips": str(each.num_clips),
        "rows": str(each.num_rows),
        "shards": str(each.num_shards),
        "size": _size(each.size_bytes),
        "age": _age(time.time() - each.changed_seconds),
    }


def _verify(arguments: argparse.Namespace) -> None:
    _check_there(arguments.view)
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
    _check_there(arguments.view)
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
        freed, shared = _size(garbage.freed_bytes), _size(garbage.shared_bytes)
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
        return f"{len(shards)} shards, {_size(sum(shard.size_bytes for shard in shards))}"

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


def _dump(arguments: argparse.Namespace) -> None:
    with open_view(arguments.tap) as view:
        clip_ids = arguments.clip or view.clip_ids()
        with ProgressBar(total=len(clip_ids), unit="clip", desc="dump") as bar:
            DUMPS[arguments.format](view, clip_ids, arguments.out, on_clip=bar.update)
    print(f"{len(clip_ids)} clips are in {arguments.out}.")


def _check_there(view: Path) -> None:
    if not view.exists() and not journal_path().exists():
        raise MissingFeaturesError(f"There is no journal {journal_path()} and no view {view}.")


def _existing_journal() -> Journal:
    path = journal_path()
    if not path.exists():
        raise StoreError(
            f"No journal at {path}. Run this in the repository's root, or set FRAMECACHE_JOURNAL."
        )
    return Journal(path)


def _progress(checks: Sequence[Check]) -> ProgressBar:
    return ProgressBar(total=size_bytes(checks), unit="B", unit_scale=True, unit_divisor=1024, desc="verify")


def _size(num_bytes: int) -> str:
    return f"{ProgressBar.format_sizeof(num_bytes, divisor=1024)}B"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _say_waiting(holder: str) -> None:
    log.info("Waiting for a run that uses the journal: %s.", holder)


if __name__ == "__main__":
    console.run(main)
