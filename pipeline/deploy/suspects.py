"""Why do features of another program differ? Likely causes, each tried out on some clips.

A cause is tried by making our features as it would have made theirs, and comparing again. Some change arrays
alone: axes, time, ReLU, pooling. Others compute the features anew: pixels, normalisation, resizing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch

from pipeline.backbone import Weights
from pipeline.contract import FeatureContract, Preprocessing
from pipeline.deploy.end_to_end import clip_rows, make_backbone
from pipeline.errors import FeatureFileError
from pipeline.extraction.runners import as_stored, pooled
from pipeline.manifest import Clip
from pipeline.store.upkeep.compare import Comparison

Arrays = Mapping[str, np.ndarray]  # by clip id
Change = Callable[[np.ndarray], np.ndarray]

# From an array of another program to maps (T, C, H, W), by its number of axes.
_AXES: dict[int, dict[str, Change]] = {
    2: {
        "axes (T, D)": lambda array: array[:, :, None, None],
        "axes (D, T)": lambda array: array.T[:, :, None, None],
    },
    4: {
        "axes (T, C, H, W)": lambda array: array,
        "axes (T, H, W, C)": lambda array: array.transpose(0, 3, 1, 2),
        "axes (C, T, H, W)": lambda array: array.transpose(1, 0, 2, 3),
        "axes (T, C, W, H)": lambda array: array.transpose(0, 1, 3, 2),
    },
}
# From our maps (T, C, H, W) to theirs.
_POOLINGS: dict[str, Change] = {
    "maps as they are": lambda maps: maps,
    "mean over each map": lambda maps: maps.astype(np.float32).mean(axis=(2, 3), keepdims=True),
    "maximum of each map": lambda maps: maps.max(axis=(2, 3), keepdims=True),
}
# (our frames, their frames) that show the same, if a cause is true.
_MAX_STEP = 8
_IN_TIME: dict[str, tuple[slice, slice]] = {
    "their frames are one later": (slice(None, -1), slice(1, None)),
    "their frames are one earlier": (slice(1, None), slice(None, -1)),
    **{f"they have each {n}. frame": (slice(None, None, n), slice(None)) for n in range(2, _MAX_STEP + 1)},
    **{f"we have each {n}. frame": (slice(None), slice(None, None, n)) for n in range(2, _MAX_STEP + 1)},
}
_IN_VALUES: dict[str, tuple[Change, Change]] = {
    "theirs are behind a ReLU": (lambda ours: np.maximum(ours, 0), lambda theirs: theirs),
    "theirs are before a ReLU": (lambda ours: ours, lambda theirs: np.maximum(theirs, 0)),
}


@dataclass(frozen=True)
class Form:
    """How arrays of another program become comparable with ours."""

    axes: str
    pooling: str
    theirs: Change
    ours: Change


@dataclass(frozen=True)
class Suspect:
    """A cause, and how far theirs are from ours where it is taken into account."""

    cause: str
    comparison: Comparison


def find_form(ours: Arrays, theirs: Arrays) -> Form:
    """The axes and pooling with which the features of all clips have one shape; of several the likeliest.

    Raises FeatureFileError when there are none.
    """
    clip_id = next(iter(theirs))
    forms = []
    for (axes, change), (pooling, pool) in product(
        _AXES.get(theirs[clip_id].ndim, {}).items(), _POOLINGS.items()
    ):
        form = Form(axes, pooling, change, pool)
        if all(
            pool(ours[name][:1]).shape[1:] == change(array).shape[1:] and len(change(array))
            for name, array in theirs.items()
        ):
            forms.append((compare(ours, theirs, form=form).cosine, form))
    if not forms:
        raise FeatureFileError(
            f"{clip_id} has the shape {ours[clip_id].shape} here and {theirs[clip_id].shape} there: neither"
            " other axes nor pooling make them equal. It may be another tap, network or crop."
        )
    return max(forms, key=lambda found: found[0])[1]


def compare(
    ours: Arrays,
    theirs: Arrays,
    *,
    form: Form,
    frames: tuple[slice, slice] = (slice(None), slice(None)),
    values: tuple[Change, Change] = (lambda ours: ours, lambda theirs: theirs),
) -> Comparison:
    """Compare all clips of `theirs`, frame by frame in order."""
    comparison = Comparison()
    for name, array in theirs.items():
        one, other = values[1](form.theirs(array)), values[0](form.ours(ours[name]))
        comparison.add(np.ascontiguousarray(one[frames[1]]), np.ascontiguousarray(other[frames[0]]))
    return comparison


def suspects_in_arrays(ours: Arrays, theirs: Arrays, *, form: Form) -> Iterator[Suspect]:
    """Causes that can be told from arrays alone: in time, and in values."""
    for cause, frames in _IN_TIME.items():
        found = compare(ours, theirs, form=form, frames=frames)
        if found.num_frames and found.num_missing <= found.num_clips:
            yield Suspect(cause, found)
    for cause, values in _IN_VALUES.items():
        yield Suspect(cause, compare(ours, theirs, form=form, values=values))


def suspects_in_pixels(
    clips: Sequence[Clip],
    theirs: Arrays,
    *,
    form: Form,
    contract: FeatureContract,
    weights: Weights,
    root: Path,
    device: torch.device,
) -> Iterator[Suspect]:
    """Causes for which features are computed anew, from the clips' sources below `root`.

    Raises as `make_backbone` and `clip_rows` do.
    """
    for cause, asked, changed, swap in _pixel_causes(contract, weights):
        backbone = make_backbone(contract, changed, device=device)
        made = {}
        for clip in clips:
            parts = []
            for pixels, _ in clip_rows(clip, root=root, contract=asked, device=device):
                maps = backbone(pixels.flip(1) if swap else pixels)[contract.tap]
                parts.append(as_stored(pooled(maps, contract), contract).cpu().numpy())
            made[clip.clip_id] = np.concatenate(parts)
        yield Suspect(cause, compare(made, theirs, form=form))


def _pixel_causes(
    contract: FeatureContract, weights: Weights
) -> Iterator[tuple[str, FeatureContract, Weights, bool]]:
    """(cause, contract with the preprocessing that it means, weights, whether channels are swapped)."""
    zeros, ones = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    yield "channels are BGR", contract, weights, True
    yield "no normalisation, pixels from 0 to 1", contract, replace(weights, mean=zeros, std=ones), False
    bytes_std = (1 / 255, 1 / 255, 1 / 255)
    yield (
        "no normalisation, pixels from 0 to 255",
        contract,
        replace(weights, mean=zeros, std=bytes_std),
        False,
    )
    half = (0.5, 0.5, 0.5)
    yield "pixels from -1 to 1", contract, replace(weights, mean=half, std=half), False
    for cause, preprocessing in _other_preprocessing(contract.preprocessing):
        yield cause, contract.model_copy(update={"preprocessing": preprocessing}), weights, False


def _other_preprocessing(used: Preprocessing) -> Iterator[tuple[str, Preprocessing]]:
    height, width = used.crop_size
    resizes: dict[str, int | tuple[int, int]] = {
        "resized to the crop's size, whatever the shape of frames": (height, width),
        "resized so that the shorter side is the crop's": max(height, width),
        "resized to 8/7 of the crop": round(max(height, width) * 8 / 7),
    }
    for cause, resize in resizes.items():
        if resize != used.resize:
            yield cause, used.model_copy(update={"resize": resize})
    other = "bicubic" if used.interpolation == "bilinear" else "bilinear"
    yield f"interpolation is {other}", used.model_copy(update={"interpolation": other})
