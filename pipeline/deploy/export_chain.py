"""Export of a model that answers at once: one file, from frames to the answer.

Inside are normalisation, the frozen network, the tail if there is one, the trained model, and the step to
probabilities or to values in the manifest's unit.

A model that answers questions has a second input, questions (B, Q, S) int64: Q a clip, each the numbers of
its words in the metadata's vocabulary, then <end>, then <pad>. Q and S are free.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.backbone import Weights
from pipeline.deploy.end_to_end import EndToEnd
from pipeline.deploy.export_formats import find_format
from pipeline.deploy.export_recurrence import whole_recurrences
from pipeline.deploy.export_tracing import (
    Exported,
    check_differences,
    describe_export,
    difference,
    example_frames,
    frames_dimension,
    metadata,
    num_frames_taken,
    of_other_lengths,
    trace,
)
from pipeline.learn.checkpoint import Checkpoint
from pipeline.learn.tasks import Task
from pipeline.system.files import atomic_path


class FramesToAnswer(nn.Module):
    """The module that is exported: from frames to probabilities or values."""

    def __init__(self, network: EndToEnd, task: Task) -> None:
        super().__init__()
        self.network = network
        self._interpret = task.interpret
        self._extra_names = tuple(task.extra_inputs)

    def forward(self, frames: Tensor, *extra: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) uint8 RGB, resized and cropped -> answers (B, K) or (B, T, K) float32.

        `extra` are the task's extra inputs: a model that reads questions (B, Q, S) gives answers (B, Q, K).
        """
        return self._interpret(self.network(frames, **dict(zip(self._extra_names, extra, strict=True))))


def frames_to_answer(checkpoint: Checkpoint, weights: Weights) -> FramesToAnswer:
    """The checkpoint's chain, on the CPU in eval mode. Raises what `EndToEnd` does."""
    network = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights)
    chain = FramesToAnswer(network, checkpoint.task).eval().requires_grad_(False)
    # torch.export.save warns of weights in channels-last memory.
    return chain.to(memory_format=torch.contiguous_format)


def export_chain(
    checkpoint: Checkpoint,
    weights: Weights,
    *,
    path: Path,
    num_frames: int,
    check_with: Mapping[str, Tensor],
    tolerance: float = 1e-3,
) -> Exported:
    """Write the chain to `path`, in the format of its suffix, once the file is found equal to the model.

    The file is loaded again and runs on `check_with`: frames (B, T, 3, H, W) uint8 with T = `num_frames`, by
    a name for people. Where it takes any number of frames, it also runs on T + 1 and on one. Differences are
    relative to the largest answer where that is above 1.

    Raises ConfigError for an unknown suffix, or when `num_frames` is not the window of a model that reads
    windows; MissingPackageError for ONNX without its packages; PipelineError when a difference is above the
    tolerance: then there is no file.
    """
    form, task = find_format(path), checkpoint.task
    chain = frames_to_answer(checkpoint, weights)
    example = example_frames(checkpoint, num_frames=num_frames)
    batch = torch.export.Dim("batch")
    extra_dimensions = tuple(
        {0: batch, **{number: torch.export.Dim(axis) for number, axis in enumerate(extra.axes, start=1)}}
        for extra in task.extra_inputs.values()
    )
    frames_dimensions = {0: batch, 1: frames_dimension(checkpoint)}
    dimensions = (frames_dimensions, extra_dimensions) if extra_dimensions else (frames_dimensions,)

    def inputs(frames: Tensor) -> tuple[Tensor, ...]:
        return frames, *task.example_inputs(len(frames)).values()

    names = ["frames", *task.extra_inputs]
    with atomic_path(path) as partial:
        with whole_recurrences():
            program = trace(chain, inputs(example), dynamic_shapes=dimensions)
            taken = num_frames_taken(program)
            text = metadata(checkpoint, num_frames=taken)
            form.save(program, partial, text, inputs=names, outputs=["answers"])
        loaded = form.load(partial)
        differences = {
            name: max(
                difference(loaded(*inputs(clips)), chain(*inputs(clips)))
                for clips in of_other_lengths(frames, num_frames=taken)
            )
            for name, frames in check_with.items()
        }
        check_differences(differences, path=path, tolerance=tolerance)
    return describe_export(path, checkpoint, num_frames=taken, differences=differences)
