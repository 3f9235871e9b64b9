"""Export of a model that says words: one file that reads the frames, and one that says the next word.

    model.onnx         frames (B, T, 3, H, W) uint8 -> states (B, L, E), summary (B, K), state_0, ...
    model.step.onnx    words, states, summary, state_0, ... -> probabilities (B, V), attention (B, L),
                       new_state_0, ...

A caption begins with <start>: give the last words (B,) int64 and the state, choose the next words (any but
<pad>, <start> and <unknown>), and go on until <end>; a transformer keeps no state and takes all words so far
(B, S). The metadata's task has the vocabulary. B and T are free. .pt2 files have the same inputs and outputs,
in this order.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

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
from pipeline.learn.models.attention import Memory
from pipeline.learn.models.captioning import CaptionModel
from pipeline.learn.vocabulary import START
from pipeline.system.files import atomic_path

_NUM_WORDS_CHECKED = 5


class MapsToMemory(nn.Module):
    """The model up to what its decoder starts from."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """Maps (B, T, C, H, W) -> states (B, L, E), summary (B, K), and the decoder's first state, if any."""
        memory = self.model.remember(maps, lengths)
        decoder = self.model.decoder
        state = () if decoder.keeps_words else decoder.first_state(memory)
        return memory.states, memory.summary, *state


class FramesToMemory(nn.Module):
    """The module of the first file: from frames to what a decoder starts from."""

    def __init__(self, network: EndToEnd) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames (B, T, 3, H, W) uint8 RGB, resized and cropped; see `MapsToMemory`."""
        memory: tuple[Tensor, ...] = self.network(frames)
        return memory


class NextWord(nn.Module):
    """The module of the second file: the decoder's next word."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, words: Tensor, states: Tensor, summary: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Words (B,) or (B, S) -> probabilities (B, V) of the next, attention (B, L), the new state."""
        memory = Memory(states, torch.ones_like(states[..., 0], dtype=torch.bool), summary)
        if self.decoder.keeps_words:
            all_logits, all_attention = self.decoder(memory, words)
            return all_logits[:, -1].softmax(dim=-1), all_attention[:, -1]
        logits, state, attention = self.decoder.step(words, state, memory)
        return logits.softmax(dim=-1), attention, *state


def export_captioner(
    checkpoint: Checkpoint,
    weights: Weights,
    *,
    path: Path,
    num_frames: int,
    check_with: Mapping[str, Tensor],
    tolerance: float = 1e-3,
) -> Exported:
    """Write both files: `path`, and beside it the one with .step before the suffix.

    They are loaded again and say some words about `check_with`: frames (B, T, 3, H, W) uint8, by a name for
    people. Raises what `export_chain` does.
    """
    form = find_format(path)
    model = cast(CaptionModel, checkpoint.model)
    network = EndToEnd(MapsToMemory(model), contract=checkpoint.contract, weights=weights)
    look = FramesToMemory(network).eval().requires_grad_(False)
    look = look.to(memory_format=torch.contiguous_format)
    speak = NextWord(model).eval().requires_grad_(False)
    frames = example_frames(checkpoint, num_frames=num_frames)
    memory = [part.clone() for part in look(frames)]  # of a view, the exporter would ask for its base
    state = [f"state_{number}" for number in range(len(memory) - 2)]
    words, free = torch.full((2,), START), {0: torch.export.Dim("batch")}
    words_dimensions: dict[int, Any] = free
    if model.decoder.keeps_words:
        words, words_dimensions = torch.full((2, 3), START), {**free, 1: torch.export.Dim("num_words")}
    num_steps = torch.export.Dim("num_steps")  # an axis of another size where frames are fewer
    memory_dimensions = [
        {**free, **{axis: num_steps for axis, size in enumerate(part.shape) if size != fewer.shape[axis]}}
        for part, fewer in zip(memory, look(frames[:, :-1]), strict=True)
    ]
    step_path = path.with_suffix(f".step{path.suffix}")
    with atomic_path(path) as partial, atomic_path(step_path) as step:
        with whole_recurrences():
            program = trace(look, (frames,), dynamic_shapes=({**free, 1: frames_dimension(checkpoint)},))
            taken = num_frames_taken(program)
            text = metadata(checkpoint, num_frames=taken)
            outputs = ["states", "summary", *state]
            form.save(program, partial, text, inputs=["frames"], outputs=outputs)
            of_state = (tuple(memory_dimensions[2:]),) if state else ()
            shapes = (words_dimensions, *memory_dimensions[:2], *of_state)
            program = trace(speak, (words, *memory), dynamic_shapes=shapes)
            form.save(
                program,
                step,
                text,
                inputs=["words", "states", "summary", *state],
                outputs=["probabilities", "attention", *(f"new_{name}" for name in state)],
            )
        loaded = form.load(partial), form.load(step)
        differences = {
            name: max(
                difference(found, expected)
                for clips in of_other_lengths(frames, num_frames=taken)
                for found, expected in zip(_say(*loaded, clips), _say(look, speak, clips), strict=True)
            )
            for name, frames in check_with.items()
        }
        check_differences(differences, path=path, tolerance=tolerance)
    return describe_export(path, checkpoint, num_frames=taken, differences=differences)


def _say(look: Callable[..., Any], speak: Callable[..., Any], frames: Tensor) -> list[Tensor]:
    """Every output of both modules for frames (B, T, 3, H, W), while they say the likeliest words."""
    memory = look(frames)
    states, summary, *state = memory
    words = torch.full((len(frames), 1), START)
    said = list(memory)
    for _ in range(_NUM_WORDS_CHECKED):
        probabilities, attention, *new_state = speak(
            words[:, -1] if state else words, states, summary, *state
        )
        said += [probabilities, attention, *new_state] if attention.numel() else [probabilities, *new_state]
        state = new_state
        words = torch.cat([words, probabilities.argmax(dim=1, keepdim=True)], dim=1)
    return said
