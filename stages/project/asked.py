"""What a params.yaml or dvc.lock of any revision asks for, however damaged it is."""

import re
from collections.abc import Callable
from typing import Any

import yaml

from pipeline.contract import FeatureContract
from stages.project.cache import MALFORMED

# Fields of a contract that parameters alone do not tell.
_UNKNOWN_FIELDS = {"weights_sha256", "mean", "std", "revision"}
# A merge conflict: ours, with diff3 the common ancestor's, and theirs.
_CONFLICT = re.compile(
    rb"^<{7}[^\n]*\n(.*?)(?:^\|{7}[^\n]*\n.*?)?^={7}[^\n]*\n(.*?)^>{7}[^\n]*\n?", re.DOTALL | re.MULTILINE
)


def mentioned_digests(lock: bytes) -> list[str]:
    """The md5s of all folders that a dvc.lock mentions, however damaged it is."""
    return sorted({md5.decode() for md5 in re.findall(rb"\b[0-9a-f]{32}\.dir\b", lock)})


def fitting(params: bytes) -> Callable[[FeatureContract], bool]:
    """Whether a contract may be what a params.yaml asks for; one that can't be read may ask for anything."""
    asked = asked_contracts(params)
    if asked is None:
        return lambda _: True
    return lambda contract: any(each.differences(contract).keys() <= _UNKNOWN_FIELDS for each in asked)


def asked_contracts(params: bytes) -> list[FeatureContract] | None:
    """The contracts that a params.yaml asks for, on both sides of a conflict; None when it can't be read."""
    sides = {_CONFLICT.sub(side, params) for side in (rb"\1", rb"\2")}
    try:
        return [contract for side in sides for contract in _contracts(yaml.safe_load(side))]
    except MALFORMED:
        return None


def _contracts(document: Any) -> list[FeatureContract]:
    extract = document["extract"]
    fields = ("sampling", "preprocessing", "precision", "backend", "pooling", "dtype")
    return [
        FeatureContract(
            tap=tap,
            arch=document["weights"]["arch"],
            weights_sha256="",
            mean=(0, 0, 0),
            std=(1, 1, 1),
            **{field: extract[field] for field in fields if field in extract},
        )
        for tap in extract["taps"]
    ]
