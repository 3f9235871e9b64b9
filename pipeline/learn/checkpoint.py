"""Checkpoints: a trained model as model.safetensors, and its description as checkpoint.json."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from pydantic import ValidationError
from torch import nn

from pipeline.backbone.tails import contract_tail
from pipeline.backbone.weights import UNKNOWN_SOURCE
from pipeline.contract import FeatureContract
from pipeline.errors import CheckpointError, ContractError
from pipeline.learn.metrics import json_numbers
from pipeline.learn.streaming import Features, MapShape, streams_of
from pipeline.learn.tasks import TASK_CLASSES, Task
from pipeline.settings.training import TrainConfig
from pipeline.system.files import write_atomically, write_json

_WEIGHTS, DESCRIPTION = "model.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, its task and settings, and the contract of the features that it was trained on."""

    network: str  # the name of the model, recurrent or baseline
    model: nn.Module
    task: Task
    config: TrainConfig
    contracts: tuple[FeatureContract, ...]  # of the features that the model reads: its tap's, its streams'
    map_shapes: tuple[MapShape, ...]  # (C, H, W) of these features
    metrics: Mapping[str, float | None]  # of the val split; None: not defined
    weights_source: str = UNKNOWN_SOURCE  # for people: of the network that made the features
    inputs: Mapping[str, str] = field(default_factory=dict)  # digests of features and manifest; {}: unknown

    @property
    def contract(self) -> FeatureContract:
        """That of the tap's features."""
        return self.contracts[0]

    @property
    def streams(self) -> tuple[str, ...]:
        """The taps that are read beside it."""
        return tuple(stream.tap for stream in self.config.streams)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint's files to `folder`.

    The weights include those of standardisation, steps.standardise.mean and steps.standardise.std.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu().contiguous() for name, value in checkpoint.model.state_dict().items()}
    write_atomically(folder / _WEIGHTS, safetensors.torch.save(weights))
    description = {
        "network": checkpoint.network,
        "task": checkpoint.task.describe(),
        "map_shapes": checkpoint.map_shapes,
        "metrics": json_numbers(checkpoint.metrics),
        "weights_source": checkpoint.weights_source,
        "inputs": dict(checkpoint.inputs),
        "config": checkpoint.config.model_dump(mode="json"),
        "contracts": [contract.model_dump(mode="json") for contract in checkpoint.contracts],
    }
    write_json(folder / DESCRIPTION, description)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its model on the CPU in eval mode.

    Raises CheckpointError when it is missing, or was written by another version.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_bytes())
        weights = safetensors.torch.load_file(folder / _WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(f"No checkpoint in {folder}: {error.filename} is missing.") from None
    try:
        config = TrainConfig.model_validate(description["config"])
        contracts = tuple(map(FeatureContract.model_validate, description["contracts"]))
        task = TASK_CLASSES[config.task].from_description(description["task"])
        map_shapes = tuple((channels, height, width) for channels, height, width in description["map_shapes"])
        tail = contract_tail(contracts[0], until=config.tail) if config.tail else None
        model = task.build_model(description["network"], config, map_shapes=map_shapes, tail=tail)
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, ValidationError) as error:
        raise CheckpointError(f"{folder} was written by another version of framecache: {error}.") from None
    return Checkpoint(
        network=description["network"],
        model=model.eval(),
        task=task,
        config=config,
        contracts=contracts,
        map_shapes=map_shapes,
        metrics=description["metrics"],
        weights_source=description["weights_source"],
        inputs=description.get("inputs", {}),
    )


def check_features(checkpoint: Checkpoint, features: Features) -> None:
    """Raise ContractError for features, or streams of them, that were made otherwise than in training."""
    for expected, stream in zip(checkpoint.contracts, streams_of(features), strict=True):
        check_contract(expected, stream.contract, path=stream.path)


def check_contract(expected: FeatureContract, found: FeatureContract, *, path: Path) -> None:
    """Raise ContractError, naming the fields, if the features at `path` were made in another way."""
    if differences := expected.differences(found):
        fields = "; ".join(
            f"{field} is {there!r}, the model needs {here!r}" for field, (here, there) in differences.items()
        )
        raise ContractError(
            f"{path} does not have the features that the model was trained on: {fields}."
            " Extract with the model's values, or train on these features."
        )
