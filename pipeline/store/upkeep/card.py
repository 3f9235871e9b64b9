"""A data card: what features are, how they were made, how to make them again, and under which licences."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import yaml

from pipeline.contract import CENTER, FeatureContract
from pipeline.store.reader import FeatureView

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Licences:
    """What may be done with the features, and with what they were made of."""

    features: str = UNKNOWN  # an identifier of spdx.org, such as cc-by-4.0
    videos: str = UNKNOWN
    weights: str = UNKNOWN


@dataclass(frozen=True)
class Facts:
    """What a card says beyond the features themselves; empty where it is not known."""

    title: str
    splits: Mapping[str, int] = field(default_factory=dict)  # clips of each
    targets: Mapping[str, int] = field(default_factory=dict)  # clips that have each
    weights: Mapping[str, Any] = field(default_factory=dict)  # settings with which the network is had again
    evaluation: str = ""  # a table for people
    licences: Licences = Licences()


def make_card(view: FeatureView, facts: Facts) -> str:
    """The card of a tap's features as Markdown, with the YAML in front that hubs read."""
    front = {
        "pretty_name": facts.title,
        "license": facts.licences.features,
        "tags": ["video", "features", view.contract.name],
    }
    sections = {
        "What it is": _what(view, facts),
        "How it was made": _made(view.contract),
        "How to make it again": _again(view.contract, facts.weights),
        "What was trained on it": f"```text\n{facts.evaluation.strip()}\n```" if facts.evaluation else "",
        "Licences": _table(
            ("of", "licence"),
            [
                ("these features", facts.licences.features),
                ("the videos or images", facts.licences.videos),
                ("the network's weights", facts.licences.weights),
            ],
        ),
    }
    text = "\n\n".join(f"## {title}\n\n{body}" for title, body in sections.items() if body)
    return (
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n# {facts.title}\n\n{text}\n"
    )


def _what(view: FeatureView, facts: Facts) -> str:
    lengths = np.array([view.num_frames(clip_id) for clip_id in view.clip_ids()])
    shape = " x ".join(map(str, view.map_shape))
    rows = [
        ("clips", str(len(view))),
        ("frames", f"{lengths.sum()}, {lengths.min()} to {lengths.max()} a clip" if len(lengths) else "0"),
        ("of each frame", f"{shape} (channels x height x width), {view.dtype}"),
        *((f"clips in {split}", str(count)) for split, count in facts.splits.items()),
        *((f"clips with {target}", str(count)) for target, count in facts.targets.items()),
    ]
    return _table(("", ""), rows)


def _made(contract: FeatureContract) -> str:
    values = contract.foreign or contract
    head = (
        "Another program made these features. This is what is known of it."
        if contract.foreign
        else "Everything that determines a value, with framecache's names. Equal values are equal features."
    )
    rows = [(f"`{name}`", f"`{value}`") for name, value in _leaves(values.model_dump(mode="json"))]
    return f"{head}\n\n{_table(('field', 'value'), [*rows, ('digest', f'`{contract.digest()}`')])}"


def _again(contract: FeatureContract, weights: Mapping[str, Any]) -> str:
    if contract.foreign:
        return ""
    values = contract.model_dump(mode="json")
    names = ("sampling", "windows", "preprocessing", "pooling", "dtype", "precision", "backend")
    extract = {"taps": [contract.tap], **{name: values[name] for name in names if name in values}}
    if contract.layout:
        extract["layouts"] = {contract.tap: contract.layout}
    if contract.view != CENTER:
        extract["views"] = [CENTER.name, contract.view.name]
    unknown = {"arch": contract.arch, "source": f"file with sha256 {contract.weights_sha256}"}
    settings = {"weights": {**unknown, **weights}, "extract": extract}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return (
        f"In framecache's params.yaml:\n\n```yaml\n{text}```\n\n`dvc repro extract` then makes them, and"
        " `python -m stages.store check --against` compares. The contract has the sha256 of the weights file."
    )


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [head, ("---", "---"), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Dotted name and value, as JSON or text, of all that is known."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
