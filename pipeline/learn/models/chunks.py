"""Chunks: a model's answer about a clip of which some frames at a time are in memory.

It is the answer about the clip in one piece, up to rounding. A unidirectional net carries its state from
chunk to chunk. A bidirectional one needs no overlap of chunks: it reads the clip num_layers + 1 times,
backwards and forwards in turn, and each time knows the states at the ends of chunks from the time before.
What is kept of a chunk is its states at both ends, and its part in the summary.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.learn.models.clip import ClipModel, LateFusion, MeanPoolModel, SequenceModel
from pipeline.learn.models.encoder import RecurrentEncoder
from pipeline.learn.models.summaries import Attention, full_lengths
from pipeline.registry import either
from pipeline.settings.model import CELLS

Span = tuple[int, int]  # the first frame of a chunk, and the number of its frames
ReadFrames = Callable[[int, int], Tensor]  # a span -> maps (1, T, C, H, W), on the model's device
States = tuple[Tensor, ...]  # of a recurrence, see `Recurrence.forward`


@torch.inference_mode()
def answer_in_chunks(
    model: ClipModel | LateFusion, read: ReadFrames, *, num_frames: int, chunk_frames: int
) -> Tensor:
    """The outputs for a clip, (T, K) with an answer a frame, else (K,), of a model in eval mode.

    Args:
        model: the model, in eval mode.
        read: reads consecutive frames of the clip; it is called for each frame, maybe more than once.
        num_frames: T.
        chunk_frames: the most frames that are asked for at once.

    Raises ConfigError for a cell that reads a clip in one piece only, a transformer.
    """
    if isinstance(model, LateFusion):
        answers = [
            answer_in_chunks(cast(ClipModel, each), read, num_frames=num_frames, chunk_frames=chunk_frames)
            for each in model.models
        ]
        return torch.stack(answers).mean(dim=0)
    spans = [(first, min(chunk_frames, num_frames - first)) for first in range(0, num_frames, chunk_frames)]
    if isinstance(model, MeanPoolModel):
        return _answer_mean(model, read, spans)
    if not CELLS[model.config.cell].reads_chunks:
        raise ConfigError(
            f"cell {model.config.cell!r} reads a clip in one piece: in chunks, only"
            f" {either(name for name, cell in CELLS.items() if cell.reads_chunks)} do."
        )
    chunks = _read_states(model, read, spans)
    if model.per_frame:
        return torch.cat([model.answer(states, full_lengths(states))[0] for states in chunks])
    outputs: Tensor = model.head(model.dropout(_summarise(model, chunks)))
    return outputs[0]


def _answer_mean(model: MeanPoolModel, read: ReadFrames, spans: Sequence[Span]) -> Tensor:
    if model.per_frame:
        return torch.cat([model(read(*span))[0] for span in spans])
    sums = [model.steps(read(*span)).values.mean(dim=2).sum(dim=1) for span in spans]  # (1, D) each
    mean = torch.stack(sums).sum(dim=0) / sum(count for _, count in spans)
    outputs: Tensor = model.head(model.dropout(mean))
    return outputs[0]


def _read_states(model: SequenceModel, read: ReadFrames, spans: Sequence[Span]) -> Iterator[Tensor]:
    """The states (1, T, S, E) of each chunk, in order."""
    encoder = model.encoder
    if not isinstance(encoder, RecurrentEncoder):  # each step by itself
        for span in spans:
            yield model.encode(read(*span))[0]
        return
    num_directions = 2 if model.config.bidirectional else 1
    num_passes = model.config.num_layers + 1 if model.config.bidirectional else 1
    ends: list[States | None] = [None] * len(spans)  # the last states of each chunk, in either direction
    for number in reversed(range(num_passes)):
        # The last pass is forwards. After n passes, the outputs of n - 1 layers are those of the whole clip,
        # and so are the ends of the next layer, in the direction of the pass.
        for chunk in range(len(spans)) if number % 2 == 0 else reversed(range(len(spans))):
            steps = model.read_steps(read(*spans[chunk]))
            before = _states_before(ends, chunk, num_directions=num_directions)
            states, ends[chunk] = encoder.carry(steps.sequences.steps, before)
            if number == 0:
                yield states.view(*steps.values.shape[:3], -1)


def _states_before(ends: Sequence[States | None], chunk: int, *, num_directions: int) -> States | None:
    """The states with which a chunk begins in each direction: the ends of its neighbours; None: zeros."""
    earlier = ends[chunk - 1] if chunk else None
    later = ends[chunk + 1] if num_directions == 2 and chunk + 1 < len(ends) else None
    known = earlier or later
    if known is None:
        return None
    before = tuple(torch.zeros_like(states) for states in known)  # (layers * directions, 1, H) each
    for kind, states in enumerate(before):
        if earlier:
            states[::num_directions] = earlier[kind][::num_directions]
        if later:
            states[1::2] = later[kind][1::2]
    return before


def _summarise(model: SequenceModel, chunks: Iterator[Tensor]) -> Tensor:
    """The summary (1, E) of a clip, from the states (1, T, S, E) of its chunks."""
    name, bidirectional = model.config.summary, model.config.has_backward_half
    parts, log_weights = [], []  # the weight of a chunk in the mean that a summary is
    for chunk in chunks:
        states = chunk.flatten(1, 2)  # (1, L, E)
        if name == "last":
            parts.append(states[:, [0, -1]])
            continue
        parts.append(model.summary(states, full_lengths(states), bidirectional=bidirectional)[:, None])
        if name == "mean":
            log_weights.append(states.new_tensor([math.log(states.shape[1])]))
        if isinstance(model.summary, Attention):
            log_weights.append(model.summary.scores(states).logsumexp(dim=1)[:, 0])
    kept = torch.cat(parts, dim=1)  # (1, P, E)
    if log_weights:
        shares = torch.cat(log_weights).softmax(dim=0)  # (P,)
        return (shares[:, None] * kept).sum(dim=1)
    summary: Tensor = model.summary(kept, full_lengths(kept), bidirectional=bidirectional)
    return summary
