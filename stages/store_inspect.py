"""`python -m stages.store inspect`: which features there are."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from pipeline.store.upkeep.summary import FeatureSet, journal_sets, view_sets
from stages import console
from stages.places import FEATURES, journal_path
from stages.store_words import AddVerb, check_there, size_text


def add_verbs(add: AddVerb) -> None:
    """Add `inspect`."""
    verb = add("inspect", _inspect, "list the features in journal and view")
    verb.add_argument("--view", type=Path, default=FEATURES, help="folder of the view (%(default)s)")
    verb.add_argument("--json", action="store_true", help="print JSON")


def _inspect(arguments: argparse.Namespace) -> None:
    check_there(arguments.view)
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
        "arch": "imported" if contract.foreign else contract.arch,
        "weights": contract.weights_sha256[:8],
        "tap": contract.name,
        "pooling": contract.pooling,
        "sampling": str(contract.sampling.model_dump()),
        "input": f"{height}x{width}",
        "dtype": contract.dtype,
        "layout": each.layout.name,
        "clips": str(each.num_clips),
        "rows": str(each.num_rows),
        "shards": str(each.num_shards),
        "size": size_text(each.size_bytes),
        "age": _age(time.time() - each.changed_seconds),
    }


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
