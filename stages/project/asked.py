"""What a params.yaml or dvc.lock of any revision asks for, however damaged it is."""

import re
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from operator import attrgetter
from typing import Any

import yaml
from pydantic import BaseModel, TypeAdapter

from pipeline.contract import FeatureContract, Windows
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.views import Views
from pipeline.settings.weights import WeightsConfig
from stages.project.cache import MALFORMED

# The fields of a contract that section `extract` tells. Nothing tells the weights' digest, mean and std.
_FIELDS = ("sampling", "windows", "preprocessing", "precision", "backend", "pooling", "dtype")
# A merge conflict: ours, with diff3 the common ancestor's, and theirs.
_CONFLICT = re.compile(
    rb"^<{7}[^\n]*\n(.*?)(?:^\|{7}[^\n]*\n.*?)?^={7}[^\n]*\n(.*?)^>{7}[^\n]*\n?", re.DOTALL | re.MULTILINE
)


def mentioned_digests(lock: bytes) -> list[str]:
    """The md5s of all folders that a dvc.lock mentions, however damaged it is."""
    return sorted({md5.decode() for md5 in re.findall(rb"\b[0-9a-f]{32}\.dir\b", lock)})


def fitting(params: bytes, *, with_defaults: bool = False) -> Callable[[FeatureContract], bool]:
    """Whether a contract may be what a params.yaml asks for; one that can't be read may ask for anything.

    A key that is not there may have meant any value: its default then may be another than today's. Only
    `with_defaults`, for parameters of the code that runs, it has the default.
    """
    asked = asked_fields(params, with_defaults=with_defaults)
    if asked is None:
        return lambda _: True
    return lambda contract: any(
        all(attrgetter(name)(contract) == value for name, value in fields.items()) for fields in asked
    )


def asked_fields(params: bytes, *, with_defaults: bool = False) -> list[dict[str, Any]] | None:
    """{field of a contract: value} of all that a params.yaml asks for, on both sides of a conflict.

    Nested fields have dotted names. None when the params.yaml can't be read.
    """
    sides = {_CONFLICT.sub(side, params) for side in (rb"\1", rb"\2")}
    try:
        return [fields for side in sides for fields in _fields(yaml.safe_load(side), with_defaults)]
    except MALFORMED:
        return None


def _fields(document: Any, with_defaults: bool) -> Iterator[dict[str, Any]]:
    weights, extract = document.get("weights") or {}, document.get("extract") or {}
    if with_defaults:
        weights, extract = dict(WeightsConfig(**weights)), dict(ExtractConfig(**extract))
    told = {name: extract[name] for name in _FIELDS if name in extract}
    if told.get("preprocessing", {}) is None:  # that of the weights, which nothing here tells
        del told["preprocessing"]
    if "windows" in told:
        told["windows"] = TypeAdapter(Windows | None).validate_python(told["windows"])
    if "arch" in weights:
        told["arch"] = weights["arch"]
    views = TypeAdapter(Views).validate_python(extract["views"]) if "views" in extract else [None]
    for tap, view in product(extract.get("taps", [None]), views):
        named = {name: value for name, value in (("tap", tap), ("view", view)) if value is not None}
        yield dict(_validated(FeatureContract, {**told, **named}))


def _validated(model: type[BaseModel], told: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of what is told of a model's fields."""
    for name, value in told.items():
        if name not in model.model_fields:
            continue
        kind: Any = model.model_fields[name].annotation
        if isinstance(value, Mapping):
            yield from ((f"{name}.{part}", item) for part, item in _validated(kind, value))
        else:
            yield name, TypeAdapter(kind).validate_python(value)
