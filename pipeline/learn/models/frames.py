"""Frames of a batch: the places in their maps, the shapes that models accept, functions of valid frames."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.errors import ShapeError


def place_map(height: int, width: int) -> Tensor:
    """Row and column of each place of a map, (2, H, W) from -1 to 1; 0 along an axis of size 1."""
    rows, columns = (torch.linspace(-1, 1, size) if size > 1 else torch.zeros(1) for size in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


def check_inputs(maps: Tensor, lengths: Tensor | None, *, map_shape: tuple[int, int, int]) -> None:
    """Raise ShapeError unless maps are (B, T, C, H, W) of `map_shape`, and lengths (B,) from 1 to T."""
    channels, height, width = map_shape
    shape = tuple(maps.shape)
    expected = f"the model reads (B, T, C, H, W) = (clips, frames, {channels}, {height}, {width})"
    if len(shape) != 5:
        remedy = {
            4: "Add the time axis: maps[:, None] for images (clips of one frame), maps[None] for one clip",
            3: "This is one image's map: give it as a clip of one frame, maps[None, None]",
        }.get(
            len(shape),
            "Give each frame's map as channels, height and width: the model itself pools and flattens maps",
        )
        raise ShapeError(f"Maps have shape {shape}, but {expected}. {remedy}.")
    if shape[2:] != map_shape:
        if shape[2:] == (height, width, channels):
            remedy = "The channels come last: give maps.movedim(-1, 2)"
        elif shape[2] == 3:
            remedy = "These are frames, not maps of a network: give them to EndToEnd, which computes maps"
        else:
            remedy = "They are of another tap, pooling or frame size than those that the model was trained on"
        raise ShapeError(f"Maps have shape {shape}, but {expected}. {remedy}.")
    batch_size, num_frames = shape[:2]
    if batch_size == 0 or num_frames == 0:
        raise ShapeError(
            f"Maps have shape {shape}, but {expected}, at least one of each: a sequence has at least one"
            " frame. Leave the clip out, or keep more of its frames."
        )
    if lengths is None:
        return
    if tuple(lengths.shape) != (batch_size,):
        raise ShapeError(
            f"Lengths have shape {tuple(lengths.shape)}, but maps {shape} need (B,) = ({batch_size},): one"
            " number of frames a clip."
        )
    if lengths.is_floating_point():
        raise ShapeError(f"Lengths are {lengths.dtype}, but count frames: give integers (B,).")
    if int(lengths.max()) > num_frames:
        raise ShapeError(
            f"Lengths go up to {int(lengths.max())}, but maps {shape} have T = {num_frames} frames: lengths"
            " count frames, not steps of the scan."
        )
    if int(lengths.min()) < 1:
        raise ShapeError(
            f"Clip {int(lengths.argmin())} of the batch has length {int(lengths.min())}: a sequence has at"
            " least one frame. Leave the clip out, or keep more of its frames."
        )


def check_sentences(sentences: Tensor, *, batch_size: int, what: str) -> None:
    """Raise ShapeError unless sentences are (B, R, S): R of S words for each clip. `what` is their name."""
    shape = tuple(sentences.shape)
    if len(shape) == 3 and shape[0] == batch_size:
        return
    remedy = (
        "Add the axis of a clip's sentences, even for one each: sentences[:, None]"
        if len(shape) == 2
        else "Give each clip of the batch its own, see pipeline.learn.vocabulary.pad_groups"
    )
    raise ShapeError(
        f"{what.capitalize()} have shape {shape}, but the model reads (B, R, S) = ({batch_size} clips,"
        f" {what} of a clip, words). {remedy}."
    )


def map_frames(function: Callable[[Tensor], Tensor], values: Tensor, lengths: Tensor | None) -> Tensor:
    """Apply `function` (N, ...) -> (N, ...) to the valid frames of `values` (B, T, ...); zeros elsewhere.

    `lengths` (B,), on the CPU; without it all T are valid.
    """
    batch_size, num_frames = values.shape[:2]
    frames = values.flatten(0, 1)  # (B * T, ...)
    if lengths is None:
        outputs = function(frames)
        return outputs.reshape(batch_size, num_frames, *outputs.shape[1:])
    valid = torch.arange(num_frames) < lengths[:, None]  # (B, T)
    rows = valid.flatten().nonzero().squeeze(1).to(values.device)  # (sum of lengths,)
    outputs = function(frames[rows])
    padded = outputs.new_zeros(len(frames), *outputs.shape[1:]).index_copy(0, rows, outputs)
    return padded.reshape(batch_size, num_frames, *outputs.shape[1:])
