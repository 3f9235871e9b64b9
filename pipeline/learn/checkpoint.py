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
from pipeline.learn.tasks import TASK_CLASSES, Task
from pipeline.settings.training import TrainConfig
from pipeline.system.files import write_atomically, write_json

_WEIGHTS, _DESCRIPTION = "model.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, its task and settings, and the contract of the features that it was trained on."""

    network: str  # the name of the model, recurrent or baseline
    model: nn.Module
    task: Task
    config: TrainConfig
    contract: FeatureContract  # of the features that the model reads
    map_shape: tuple[int, int, int]  # (C, H, W) of these features
    metrics: Mapping[str, float | None]  # of the val split; None: not defined
    weights_source: str = UNKNOWN_SOURCE  # for people: of the network that made the features
    inputs: Mapping[str, str] = field(default_factory=dict)  # digests of features and manifest; {}: unknown


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
        "map_shape": checkpoint.map_shape,
        "metrics": json_numbers(checkpoint.metrics),
        "weights_source": checkpoint.weights_source,
        "inputs": dict(checkpoint.inputs),
        "config": checkpoint.config.model_dump(mode="json"),
        "contract": checkpoint.contract.model_dump(mode="json"),
    }
    write_json(folder / _DESCRIPTION, description)


def load_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its model on the CPU in eval mode.

    Raises CheckpointError when it is missing, or was written by another version.
    """
    try:
        description = json.loads((folder / _DESCRIPTION).read_bytes())
        weights = safetensors.torch.load_file(folder / _WEIGHTS)
    except FileNotFoundError as error:
        raise CheckpointError(f"No checkpoint in {folder}: {error.filename} is missing.") from None
    try:
        config = TrainConfig.model_validate(description["config"])
        contract = FeatureContract.model_validate(description["contract"])
        task = TASK_CLASSES[config.task].from_description(description["task"])
        channels, height, width = description["map_shape"]
        tail = contract_tail(contract, until=config.tail) if config.tail else None
        model = task.build_model(
            description["network"], config, map_shape=(channels, height, width), tail=tail
        )
        model.load_state_dict(weights)
    except (KeyError, RuntimeError, ValidationError) as error:
        raise CheckpointError(f"{folder} was written by another version of framecache: {error}.") from None
    return Checkpoint(
        network=description["network"],
        model=model.eval(),
        task=task,
        config=config,
        contract=contract,
        map_shape=(channels, height, width),
        metrics=description["metrics"],
        weights_source=description["weights_source"],
        inputs=description.get("inputs", {}),
    )


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
