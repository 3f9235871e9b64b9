"""The file that keeps the trained weights of a trunk.

A weights file is a safetensors file with torchvision's tensor names (float32, without a classifier)
and the metadata `arch`, `mean`, `std` (JSON lists, of RGB in [0, 1]) and `source`. Equal content has
equal bytes, so that the file's sha256 stands for it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from pipeline.backbone.backbone import Weights
from pipeline.contract import FeatureContract, Triple
from pipeline.errors import (
    ForeignCodeError,
    ForeignFeaturesError,
    ForeignWeightsError,
    MissingNetworkError,
    WeightsError,
    WeightsFileError,
)
from pipeline.settings.networks import is_own
from pipeline.system.files import atomic_path
from pipeline.system.own_code import OwnCode

UNKNOWN_SOURCE = "an unknown source"


@dataclass(frozen=True)
class WeightsInfo:
    """A weights file without its tensors: its metadata and digest."""

    arch: str
    sha256: str  # of the file's bytes
    mean: Triple
    std: Triple
    source: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


def save_weights(weights: Weights, *, path: Path) -> None:
    """Write the weights file `path`, atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(serialise(weights))


def load_weights(path: Path, *, own: OwnCode | None = None) -> Weights:
    """Read a weights file. `own` is the code that the settings name as the network: no other is imported.

    Raises WeightsFileError when it is missing or damaged, ForeignWeightsError when its metadata lack
    what framecache writes, ForeignCodeError when it is of a network of one's own that is not `own`.
    """
    info = read_weights_info(path)
    if not is_own(info.arch):
        own = None
    elif own is None or (own.name, dict(own.arguments)) != (info.arch, dict(info.arguments)):
        named = f"{own.name} with {dict(own.arguments)}" if own else "no code"
        raise ForeignCodeError(
            f"{path} has weights of {info.arch} with {dict(info.arguments)}, and the settings name {named}:"
            " other code is not imported."
        )
    state = safetensors.torch.load_file(path)
    return Weights(**asdict(info), state=state, own=own, code=own.version() if own else None)


def read_weights_info(path: Path) -> WeightsInfo:
    """Read a weights file's metadata and digest. Raises as `load_weights` does."""
    if not path.is_file():
        raise WeightsFileError(f"No weights file {path}.")
    try:
        metadata = read_metadata(path)
    except WeightsError as error:
        raise WeightsFileError(str(error)) from error
    missing = [key for key in ("arch", "mean", "std", "source") if key not in metadata]
    if missing:
        raise ForeignWeightsError(f"{path} has no {', '.join(missing)} in its metadata.")
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return WeightsInfo(
        arch=metadata["arch"],
        sha256=sha256,
        mean=triple_of(metadata["mean"]),
        std=triple_of(metadata["std"]),
        source=metadata["source"],
        arguments=json.loads(metadata.get("arguments", "{}")),
    )


def find_weights(
    contract: FeatureContract, *, place: Path, source: str = UNKNOWN_SOURCE, own: OwnCode | None = None
) -> Weights:
    """The weights that made the contract's features: the file `place`, or one in the folder `place`.

    Raises MissingNetworkError, naming `source`, when there is none; WeightsError when the file `place` has
    other weights; ForeignCodeError as `load_weights` does.
    """
    return load_weights(_find_file(contract, place=place, source=source), own=own)


def find_source(contract: FeatureContract, *, place: Path) -> str:
    """The source of the weights that made the contract's features, read without them.

    Raises as `find_weights` does.
    """
    return read_metadata(_find_file(contract, place=place))["source"]


def _find_file(contract: FeatureContract, *, place: Path, source: str = UNKNOWN_SOURCE) -> Path:
    if contract.foreign:
        raise ForeignFeaturesError(f"The features {contract.tap} were imported: no network here makes them.")
    if place.is_file():
        check_weights(read_weights_info(place), contract)
        return place
    for path in sorted(place.glob("*.safetensors")):
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == contract.weights_sha256:
                return path
    raise MissingNetworkError(
        f"{place} does not have the weights of the {contract.arch} that made the features (from {source},"
        f" sha256 {contract.weights_sha256})."
    )


def check_weights(weights: Weights | WeightsInfo, contract: FeatureContract) -> None:
    """Raise WeightsError for other weights than those that made the contract's features."""
    if weights.sha256 != contract.weights_sha256:
        raise WeightsError(
            f"These weights are {weights.arch} from {weights.source} with sha256 {weights.sha256}, but the"
            f" model was trained on features of {contract.arch} with sha256 {contract.weights_sha256}. Give"
            " those."
        )


def serialise(weights: Weights) -> bytes:
    """The bytes of the weights file."""
    metadata = {
        "arch": weights.arch,
        "mean": json.dumps(weights.mean),
        "std": json.dumps(weights.std),
        "source": weights.source,
    }
    if weights.arguments:
        metadata["arguments"] = json.dumps(weights.arguments, sort_keys=True)
    data = safetensors.torch.save(weights.state, metadata)
    # safetensors writes its metadata in random order: write the header again, sorted.
    # Format: header length (8 bytes, little-endian), JSON header padded with spaces, tensors.
    tensors_start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:tensors_start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[tensors_start:]


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; may be empty. Raises WeightsError for a file of another kind."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file, or is damaged: {error}.") from error


def triple_of(text: str) -> Triple:
    """The mean or std that the metadata have as JSON."""
    red, green, blue = json.loads(text)
    return red, green, blue
