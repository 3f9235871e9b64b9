"""Export of a captioning model: one file that looks at the frames, and one that says the next word.

    model.onnx         frames (B, T, 3, H, W) uint8 -> states (B, L, E), summary (B, K), state_0, ...
    model.step.onnx    words, states, summary, state_0, ... -> probabilities (B, V), attention (B, L),
                       new_state_0, ...

A caption begins with <start>: give the last words (B,) int64 and the state, choose the next words (any but
<pad>, <start> and <unknown>), and go on until <end>; a transformer keeps no state and takes all words so far
(B, S). The metadata's task has the
vocabulary. B is free, T is fixed. .pt2 files have the same inputs and outputs, in this order.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbone import Weights
from pipeline.checkpoint import Checkpoint
from pipeline.end_to_end import EndToEnd
from pipeline.export import Exported, check_differences, difference, find_format, whole_lstms
from pipeline.files import atomic_path
from pipeline.models.attention import Memory
from pipeline.models.captioning import CaptionModel
from pipeline.models.decoder import RecurrentDecoder
from pipeline.vocabulary import START

_NUM_WORDS_CHECKED = 5


class MapsToMemory(nn.Module):
    """What a decoder starts from."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, maps: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        """Maps (B, T, C, H, W) -> states (B, L, E), summary (B, K), and a recurrent decoder's state."""
        memory = self.model.remember(maps, lengths)
        decoder = self.model.decoder
        state = decoder.start(memory) if isinstance(decoder, RecurrentDecoder) else ()
        return memory.states, memory.summary, *state


class FramesToMemory(nn.Module):
    """The file that looks."""

    def __init__(self, network: EndToEnd) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """Frames (B, T, 3, H, W) uint8 RGB, resized and cropped; see `MapsToMemory`."""
        memory: tuple[Tensor, ...] = self.network(frames)
        return memory


class NextWord(nn.Module):
    """The file that speaks."""

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(self, words: Tensor, states: Tensor, summary: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Words (B,) or (B, S) -> probabilities (B, V) of the next, attention (B, L), the new state."""
        memory = Memory(states, torch.ones_like(states[..., 0], dtype=torch.bool), summary)
        if isinstance(self.decoder, RecurrentDecoder):
            logits, state, attention = self.decoder.step(words, state, memory)
            return logits.softmax(dim=-1), attention, *state
        all_logits, all_attention = self.decoder(memory, words)
        return all_logits[:, -1].softmax(dim=-1), all_attention[:, -1]


def export_captioner(
    checkpoint: Checkpoint,
    weights: Weights,
    *,
    path: Path,
    num_frames: int,
    check_with: Sequence[Tensor],
    tolerance: float = 1e-3,
) -> Exported:
    """Write both files, `path` and beside it the one with .step before the suffix.

    They are loaded again and say some words about `check_with`, each frames (B, T, 3, H, W) uint8. Raises
    what `export_chain` does.
    """
    form = find_format(path)
    model = checkpoint.model
    assert isinstance(model, CaptionModel)
    network = EndToEnd(MapsToMemory(model), contract=checkpoint.contract, weights=weights)
    look = FramesToMemory(network).eval().requires_grad_(False)
    look = look.to(memory_format=torch.contiguous_format)
    speak = NextWord(model).eval().requires_grad_(False)
    height, width = checkpoint.contract.preprocessing.crop_size
    frames = torch.zeros((2, num_frames, 3, height, width), dtype=torch.uint8)
    metadata = {
        "num_frames": num_frames,
        "task": {"name": checkpoint.config.task, **checkpoint.task.describe()},
        "contract": checkpoint.contract.model_dump(mode="json"),
    }
    description = json.dumps(metadata, indent=1)
    batch = torch.export.Dim("batch")
    step_path = path.with_suffix(f".step{path.suffix}")
    with whole_lstms(look), atomic_path(path) as partial, atomic_path(step_path) as step:
        memory = look(frames)
        program = torch.export.export(look, (frames,), dynamic_shapes=({0: batch},))
        state = [f"state_{number}" for number in range(len(memory) - 2)]
        form.save(program, partial, description, inputs=["frames"], outputs=["states", "summary", *state])
        words, num_words = torch.full((2,), START), {}
        if not isinstance(model.decoder, RecurrentDecoder):
            words, num_words = torch.full((2, 3), START), {1: torch.export.Dim("num_words")}
        free = {0: batch}
        shapes: tuple[Any, ...] = (
            {**free, **num_words},
            free,
            free,
            *([(free,) * len(state)] if state else []),
        )
        program = torch.export.export(speak, (words, *memory), dynamic_shapes=shapes)
        form.save(
            program,
            step,
            description,
            inputs=["words", "states", "summary", *state],
            outputs=["probabilities", "attention", *(f"new_{name}" for name in state)],
        )
        expected = [_say(look, speak, clips) for clips in check_with]
        found = [_say(form.load(partial), form.load(step), clips) for clips in check_with]
        differences = [
            max(difference(one, other) for one, other in zip(*pair, strict=True))
            for pair in zip(found, expected, strict=True)
        ]
        check_differences(differences, path=path, tolerance=tolerance)
    return Exported(tuple(differences), any_num_frames=False)


def _say(look: Callable[..., Any], speak: Callable[..., Any], frames: Tensor) -> list[Tensor]:
    """All that both say about frames (B, T, 3, H, W), and the first words, the likeliest each time."""
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
