"""What both kinds of export share: tracing, what a file says of itself, and comparing it with the model."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from pipeline.errors import ConfigError, PipelineError
from pipeline.learn.checkpoint import Checkpoint

_NUM_FRAMES_TRACED = 3  # not 1: torch would take an axis of size 1 to be always 1


@dataclass(frozen=True)
class Exported:
    """An exported file, and how far its answers are from the model's."""

    path: Path
    inputs: str  # names, shapes and types, for people
    task: str  # in TASKS
    num_frames: int | None  # of the clips that the file takes; None: any number
    clips: str  # which clips the file takes, for people
    differences: dict[str, float]  # the largest of an answer, by the frames that the file was checked with


def describe_export(
    path: Path, checkpoint: Checkpoint, *, num_frames: int | None, differences: Mapping[str, float]
) -> Exported:
    """What was written to `path`."""
    height, width = checkpoint.contract.preprocessing.crop_size
    extra = "".join(f", {name} {value.shape}" for name, value in checkpoint.task.extra_inputs.items())
    return Exported(
        path=path,
        inputs=f"frames (B, {num_frames or 'T'}, 3, {height}, {width}) uint8{extra}",
        task=checkpoint.config.task,
        num_frames=num_frames,
        clips=clips_sentence(checkpoint, num_frames=num_frames),
        differences=dict(differences),
    )


def example_frames(checkpoint: Checkpoint, *, num_frames: int) -> Tensor:
    """Frames (2, T, 3, H, W) to trace with. Raises ConfigError when T is not the model's window."""
    window = checkpoint.config.window
    if window is not None and window != num_frames:
        raise ConfigError(
            f"The model reads windows of {window} frames, and so does the exported file: it can't take clips"
            f" of {num_frames}."
        )
    height, width = checkpoint.contract.preprocessing.crop_size
    return torch.zeros((2, window or _NUM_FRAMES_TRACED, 3, height, width), dtype=torch.uint8)


def frames_dimension(checkpoint: Checkpoint) -> Any:
    """The axis T of frames for torch.export: free, unless the model reads windows or its layers fix T."""
    return None if checkpoint.config.window else torch.export.Dim.AUTO


def trace(
    module: nn.Module, inputs: tuple[Tensor, ...], *, dynamic_shapes: tuple[Any, ...]
) -> torch.export.ExportedProgram:
    """Trace the module to a program. Call it within `whole_recurrences`."""
    with warnings.catch_warnings():
        # While traced, torch's recurrent nets assign to a list that is an attribute of theirs.
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights")
        return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)


def num_frames_taken(program: torch.export.ExportedProgram) -> int | None:
    """The number of frames T that a traced program takes; None: any."""
    name, *_ = program.graph_signature.user_inputs
    (frames,) = [node for node in program.graph.nodes if node.name == name]
    num_frames = frames.meta["val"].shape[1]
    return int(num_frames) if is_concrete_int(num_frames) else None


def of_other_lengths(frames: Tensor, *, num_frames: int | None) -> list[Tensor]:
    """Frames of T, and for a file that takes any number, of T + 1 and 1: each (B, T, 3, H, W)."""
    if num_frames is not None:
        return [frames]
    return [frames, torch.cat([frames, frames[:, :1]], dim=1), frames[:, :1]]


def metadata(checkpoint: Checkpoint, *, num_frames: int | None) -> str:
    """The JSON text in an exported file: its inputs, the task, and the contract of the frames."""
    fields = {
        "num_frames": num_frames,
        "clips": clips_sentence(checkpoint, num_frames=num_frames),
        "task": {"name": checkpoint.config.task, **checkpoint.task.describe()},
        "contract": checkpoint.contract.model_dump(mode="json"),
    }
    return json.dumps(fields, indent=1, allow_nan=False)


def clips_sentence(checkpoint: Checkpoint, *, num_frames: int | None) -> str:
    """Which clips an exported file takes, and how to use it for others; for people."""
    sampling = json.dumps(checkpoint.contract.model_dump(mode="json")["sampling"])
    if num_frames is None:
        return (
            "Takes clips of any number of frames. Give all frames that the contract's sampling,"
            f" {sampling}, takes: a clip that is cut or filled up has another answer."
        )
    if not checkpoint.config.window:
        return f"Takes clips of exactly {num_frames} frames (sampling {sampling}) and refuses others."
    return (
        f"Takes exactly {num_frames} frames and refuses others: one window of the frames that the contract's"
        f" sampling, {sampling}, takes. Cut a longer clip into windows that start every"
        f" {checkpoint.config.stride or num_frames} frames, and a last one that ends with the clip, and"
        " average their answers, as the model does."
    )


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest expected value where that is above 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def check_differences(differences: Mapping[str, float], *, path: Path, tolerance: float) -> None:
    """Raise PipelineError for a difference that is NaN or above the tolerance."""
    if not all(found <= tolerance for found in differences.values()):
        largest = max(differences.values())
        raise PipelineError(
            f"{path} would differ from the model by {largest:.2g}, more than {tolerance:.2g}."
            " Nothing was written. Raise the tolerance if that is near enough."
        )
