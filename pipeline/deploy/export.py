"""Export: the whole chain, from frames to the answer, as one file that needs no framecache.

    model.onnx    ONNX, for ONNX Runtime and others
    model.pt2     torch.export, for PyTorch: torch.export.load(path).module()

Inside are normalisation, the frozen network, the tail if there is one, the trained model, and the step to
probabilities or to values in the manifest's unit. Outside are decoding, sampling, resizing and cropping:
the contract in the file's metadata says how. The batch's size is free, and so is the number of frames; but
of a model that reads windows (train.window) the file takes exactly one, since it does not average answers.

A model that answers questions has a second input, questions (B, Q, S) int64: Q a clip, each the numbers of
its words in the metadata's vocabulary, then <end>, then <pad>. Q and S are free.
"""

import importlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from pipeline.backbone import Weights
from pipeline.deploy.end_to_end import EndToEnd
from pipeline.deploy.export_recurrence import onnx_translations, whole_recurrences
from pipeline.errors import ConfigError, PipelineError, extra
from pipeline.learn.checkpoint import Checkpoint
from pipeline.learn.tasks import QuestionAnswering, Task
from pipeline.learn.vocabulary import END, PAD
from pipeline.system.files import atomic_path

METADATA_NAME = "framecache.json"  # an entry of ONNX's metadata, an extra file in a .pt2

_NUM_FRAMES_TRACED = 3  # not 1, which torch would take to be always 1
_NUM_QUESTION_WORDS = 8  # of those that the file is checked with

Answer = Callable[..., Any]  # of frames (B, T, 3, H, W) uint8, see FramesToAnswer


class FramesToAnswer(nn.Module):
    """What is exported."""

    def __init__(self, network: EndToEnd, task: Task) -> None:
        super().__init__()
        self.network = network
        self._finish = task.finish

    def forward(self, frames: Tensor, questions: Tensor | None = None) -> Tensor:
        """Frames (B, T, 3, H, W) uint8 RGB, resized and cropped -> answers (B, K) or (B, T, K) float32.

        With questions (B, Q, S), if the model reads such, (B, Q, K).
        """
        inputs = {} if questions is None else {"questions": questions}
        return self._finish(self.network(frames, **inputs))


def frames_to_answer(checkpoint: Checkpoint, weights: Weights) -> FramesToAnswer:
    """The checkpoint's chain, on the CPU in eval mode. Raises what `EndToEnd` does."""
    network = EndToEnd(checkpoint.model, contract=checkpoint.contract, weights=weights)
    chain = FramesToAnswer(network, checkpoint.task).eval().requires_grad_(False)
    # torch.export.save warns of weights in channels-last memory.
    return chain.to(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Exported:
    """What was written."""

    differences: tuple[float, ...]  # the largest of an answer, of each frames it was checked with
    num_frames: int | None  # of the clips that it takes; None: any number

    @property
    def any_num_frames(self) -> bool:
        return self.num_frames is None


def export_chain(
    checkpoint: Checkpoint,
    weights: Weights,
    *,
    path: Path,
    num_frames: int,
    check_with: Sequence[Tensor],
    tolerance: float = 1e-3,
) -> Exported:
    """Write the chain to `path`, in the format of its suffix, once it is found equal to the original.

    The file is loaded again and runs on `check_with`, each frames (B, T, 3, H, W) uint8 with T =
    `num_frames`, and on more and fewer where it takes them, with some questions if it reads such.
    Differences are relative to the largest answer where that is above 1.

    Raises ConfigError for an unknown suffix, when packages that ONNX needs are not installed, or when
    `num_frames` is not the window of a model that reads windows; PipelineError when a difference is above
    the tolerance: then there is no file.
    """
    form = find_format(path)
    chain = frames_to_answer(checkpoint, weights)
    example = example_frames(checkpoint, num_frames=num_frames)
    batch = torch.export.Dim("batch")
    dimensions = [{0: batch, 1: frames_dimension(checkpoint)}]
    if isinstance(checkpoint.task, QuestionAnswering):
        dimensions += [{0: batch, 1: torch.export.Dim("num_questions"), 2: torch.export.Dim("num_words")}]

    def inputs(frames: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(checkpoint.task, QuestionAnswering):
            return (frames,)
        return frames, some_questions(checkpoint.task, num_clips=len(frames))

    names = ["frames", "questions"][: len(dimensions)]
    with atomic_path(path) as partial:
        with whole_recurrences():
            program = trace(chain, inputs(example), dynamic_shapes=tuple(dimensions))
            taken = num_frames_taken(program)
            metadata = describe(checkpoint, num_frames=taken)
            form.save(program, partial, metadata, inputs=names, outputs=["answers"])
        exported = form.load(partial)
        differences = [
            max(
                difference(exported(*inputs(clips)), chain(*inputs(clips)))
                for clips in of_other_lengths(frames, num_frames=taken)
            )
            for frames in check_with
        ]
        check_differences(differences, path=path, tolerance=tolerance)
    return Exported(tuple(differences), taken)


def example_frames(checkpoint: Checkpoint, *, num_frames: int) -> Tensor:
    """Frames (2, T, 3, H, W) to trace with. Raises ConfigError when T is not the model's window."""
    window = checkpoint.config.window
    if window is not None and window != num_frames:
        raise ConfigError(
            f"The model reads windows of {window} frames (train.window), and so does the exported file: it"
            f" can't take clips of {num_frames}."
        )
    height, width = checkpoint.contract.preprocessing.crop_size
    return torch.zeros((2, window or _NUM_FRAMES_TRACED, 3, height, width), dtype=torch.uint8)


def frames_dimension(checkpoint: Checkpoint) -> Any:
    """The axis T of frames, for torch.export: as free as it can be, but where the model reads windows."""
    return None if checkpoint.config.window else torch.export.Dim.AUTO


def trace(
    module: nn.Module, inputs: tuple[Tensor, ...], *, dynamic_shapes: tuple[Any, ...]
) -> torch.export.ExportedProgram:
    """The module as a program. Call it within `whole_recurrences`."""
    with warnings.catch_warnings():
        # Tracing, torch's own recurrent nets assign to a list of theirs.
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .*_flat_weights")
        return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes)


def num_frames_taken(program: torch.export.ExportedProgram) -> int | None:
    """The number of frames that a program is for; None: any."""
    name, *_ = program.graph_signature.user_inputs
    (frames,) = [node for node in program.graph.nodes if node.name == name]
    num_frames = frames.meta["val"].shape[1]
    return int(num_frames) if is_concrete_int(num_frames) else None


def of_other_lengths(frames: Tensor, *, num_frames: int | None) -> list[Tensor]:
    """Frames (B, T, 3, H, W), and where a file takes any number of them, also one more, and one."""
    if num_frames is not None:
        return [frames]
    return [frames, torch.cat([frames, frames[:, :1]], dim=1), frames[:, :1]]


def describe(checkpoint: Checkpoint, *, num_frames: int | None) -> str:
    """A file's metadata, JSON."""
    metadata = {
        "num_frames": num_frames,
        "clips": clips_sentence(checkpoint, num_frames=num_frames),
        "task": {"name": checkpoint.config.task, **checkpoint.task.describe()},
        "contract": checkpoint.contract.model_dump(mode="json"),
    }
    return json.dumps(metadata, indent=1, allow_nan=False)


def clips_sentence(checkpoint: Checkpoint, *, num_frames: int | None) -> str:
    """Which clips a file takes, and what to do about others."""
    sampling = json.dumps(checkpoint.contract.model_dump(mode="json")["sampling"])
    if num_frames is None:
        return (
            "Takes clips of any number of frames. Give all that the contract's sampling,"
            f" {sampling}, takes: if a clip is cut or filled up, its answer is another."
        )
    if not checkpoint.config.window:
        return f"Takes clips of exactly {num_frames} frames (sampling {sampling}) and refuses others."
    return (
        f"Takes exactly {num_frames} frames and refuses others: a window of what the contract's sampling,"
        f" {sampling}, takes of a clip. Of a longer clip give the windows that start at every frame number"
        f" {checkpoint.config.stride or num_frames} and the one at its end, and average the answers, as the"
        " model does."
    )


def some_questions(task: QuestionAnswering, *, num_clips: int) -> Tensor:
    """Three questions a clip (B, 3, S) int64, of three to five of the vocabulary's words."""
    words = torch.arange(num_clips * 3 * _NUM_QUESTION_WORDS) % len(task.vocabulary)
    questions = words.view(num_clips, 3, _NUM_QUESTION_WORDS)
    for number in range(3):
        questions[:, number, number + 3] = END
        questions[:, number, number + 4 :] = PAD
    return questions


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest, relative to the largest value where that is above 1."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1))


def check_differences(differences: Sequence[float], *, path: Path, tolerance: float) -> None:
    """Raise PipelineError for one above the tolerance. NaN, too, is a failure."""
    if not all(found <= tolerance for found in differences):
        raise PipelineError(
            f"{path} would differ from the model by {max(differences):.2g}, more than {tolerance:.2g}."
            " Nothing was written. Raise the tolerance if that is near enough."
        )


def load_pt2(path: Path) -> Answer:
    """An exported .pt2 as a function."""
    with path.open("rb") as file:
        module: Answer = torch.export.load(file).module()
    return module


def load_onnx(path: Path) -> Answer:
    """An exported .onnx as a function, run by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "0"
    )  # its threads sleep, like torch's
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(*inputs: Tensor) -> Any:
        values = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        outputs = [torch.from_numpy(output) for output in session.run(None, values)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return run


def _save_pt2(
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: str,
    *,
    inputs: Sequence[str],  # noqa: ARG001 (a .pt2 has the names of forward's parameters)
    outputs: Sequence[str],  # noqa: ARG001
) -> None:
    # By name, torch would insist on the suffix .pt2; in memory, since it hides a full disk in a RuntimeError.
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_NAME: metadata})
    path.write_bytes(buffer.getbuffer())


def _save_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    metadata: str,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    exported = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        input_names=inputs,
        output_names=outputs,
        custom_translation_table=onnx_translations(),
    )
    assert exported is not None
    exported.model.metadata_props[METADATA_NAME] = metadata
    exported.save(path, external_data=False)


@dataclass(frozen=True)
class Format:
    """How a chain becomes a file, and a file a function."""

    save: Callable[..., None]  # of a program, path, metadata, and the names of inputs and outputs
    load: Callable[[Path], Answer]
    packages: tuple[str, ...] = ()


FORMATS: dict[str, Format] = {
    ".onnx": Format(_save_onnx, load_onnx, packages=("onnx", "onnxscript", "onnxruntime")),
    ".pt2": Format(_save_pt2, load_pt2),
}


def find_format(path: Path) -> Format:
    """The format of the path's suffix. Raises ConfigError for another suffix, MissingPackageError."""
    if path.suffix not in FORMATS:
        raise ConfigError(f"Can't export to {path}. Available: {', '.join(FORMATS)}.")
    form = FORMATS[path.suffix]
    for package in form.packages:
        with extra("export", use="ONNX, unlike .pt2,"):
            importlib.import_module(package)
    return form
