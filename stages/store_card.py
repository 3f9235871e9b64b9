"""`python -m stages.store card`: a README.md beside features that were dumped."""

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.contract import FeatureContract
from pipeline.errors import ConfigError, PipelineError, StoreError
from pipeline.manifest import SPLITS, TARGETS, Manifest, read_manifest
from pipeline.store import FeatureView, open_view
from pipeline.store.upkeep.card import Facts, Licences, make_card
from pipeline.system.files import write_atomically
from stages.params import PARAMS, Params, read_params
from stages.places import weights_path

EVALUATION = Path("reports/evaluate.txt")


def write_card(arguments: argparse.Namespace) -> None:
    """Write the card of a tap's features into a folder; say which licences are to be filled in."""
    folder = arguments.beside if arguments.beside.is_dir() else arguments.beside.parent
    if not arguments.beside.exists():
        raise ConfigError(f"--beside: there is no {arguments.beside}. `dump` makes it.")
    path = folder / "README.md"
    if path.exists():
        raise StoreError(f"{path} exists. Remove it, or dump to another folder.")
    licences = Licences(arguments.license, arguments.video_license, arguments.weights_license)
    with open_view(arguments.tap) as view:
        facts = _facts(view, arguments.title or arguments.beside.stem, arguments.manifest, licences)
        write_atomically(path, make_card(view, facts).encode())
    print(f"{path} is written. Read it, and correct what it does not know.")


def _facts(view: FeatureView, title: str, manifest: Path | None, licences: Licences) -> Facts:
    """What the project says of the features; little where there is no project."""
    if manifest is None and not PARAMS.exists():
        return Facts(title, licences=licences)
    params = read_params() if PARAMS.exists() else None
    table = _rows(view, read_manifest(manifest or read_params().corpus.manifest))
    is_trained = params and params.train.tap == view.contract.name and EVALUATION.exists()
    return Facts(
        title,
        splits={split: count for split in SPLITS if (count := Counter(table["split"])[split])},
        targets={name: count for name in TARGETS if (count := sum(cell is not None for cell in table[name]))},
        weights=_weights(view.contract, params),
        evaluation=EVALUATION.read_text() if is_trained else "",
        licences=licences,
    )


def _rows(view: FeatureView, manifest: Manifest) -> dict[str, list[str | None]]:
    """The columns of the clips that have features, by name."""
    ids = manifest.column("clip_id").to_pylist()
    there = [clip_id in view for clip_id in ids]
    return {
        name: [cell for cell, has in zip(manifest.column(name).to_pylist(), there, strict=True) if has]
        for name in ("split", *TARGETS)
    }


def _weights(contract: FeatureContract, params: Params | None) -> dict[str, Any]:
    """The settings with which the weights that made the features are had again, as far as they are here."""
    from pipeline.backbone.weights import check_weights, find_source, read_weights_info  # seconds, of torch

    try:
        if params and params.weights.arch == contract.arch:
            check_weights(read_weights_info(weights_path(contract.arch)), contract)
            return params.weights.model_dump(mode="json", exclude_unset=True)
        return {"source": find_source(contract, place=Path("weights"))}
    except PipelineError:
        return {}
