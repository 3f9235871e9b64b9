"""Which training a state belongs to: digests of the model, its settings, its inputs and the code."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from pipeline.errors import InputChangedError
from pipeline.manifest import clips_digest
from pipeline.settings.training import ModelName, TrainConfig
from pipeline.store import open_view, stream_folder
from pipeline.system.code import code_digest


def state_path(folder: Path, config: TrainConfig, model: ModelName, inputs: Mapping[str, str]) -> Path:
    """The file that the state of a training goes to; the arguments are those of `run_digest`."""
    return folder / f"{model}-{run_digest(config, model, inputs)}.pt"


def run_digest(config: TrainConfig, model: ModelName, inputs: Mapping[str, str]) -> str:
    """The name of a training's state: another one for another model, setting, input or code.

    `inputs` are those of `input_digests`; settings that do nothing for the model have no influence.
    """
    code = [torch.__version__, loaded_code()]
    parts = [model, config.live(model), *inputs.values(), code]
    return hashlib.sha256(json.dumps(parts, allow_nan=False).encode()).hexdigest()[:32]


@functools.cache
def loaded_code() -> str:
    """The digest of the code that this process runs, whatever is edited after the first call."""
    return code_digest("pipeline.learn.run")


def input_digests(features: str | Path, manifest: str | Path, streams: Sequence[str] = ()) -> dict[str, str]:
    """The digests of features and manifest, each by its path; no column meta_<name> has an influence.

    That of the features is one digest of theirs and of the `streams` that are read beside them.
    """
    digests = []
    for folder in (Path(features), *(stream_folder(Path(features), name) for name in streams)):
        with open_view(folder) as view:
            digests.append(view.digest)
    digest = hashlib.sha256(" ".join(digests).encode()).hexdigest() if streams else digests[0]
    return {str(features): digest, str(manifest): clips_digest(manifest)}


def refuse_changes(before: Mapping[str, str], after: Mapping[str, str]) -> None:
    """Raise InputChangedError if digests of `input_digests` differ."""
    if changed := [path for path, digest in before.items() if after[path] != digest]:
        raise InputChangedError(
            f"{' and '.join(changed)} changed while the model trained, and no checkpoint is written. The"
            " training is kept: undo the change to get it, or run again to train on what is there now."
        )
