"""From frames to a model's outputs, without a store, as the contract of the model's features says.

Two routes give the same numbers. `clip_features` computes one clip's features as extraction does, for a model
to read as in evaluation: any source, any length. `EndToEnd` is one module from pixels to outputs: what is
exported.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbone import Backbone, Weights, preprocess
from pipeline.backbone.weights import check_weights
from pipeline.contract import REVISION, FeatureContract
from pipeline.deploy.spooled import SpooledFeatures
from pipeline.errors import ContractError, NonFiniteError, ShapeError
from pipeline.extraction.runners import as_stored, map_peaks, pooled
from pipeline.extraction.windows import WindowCutter
from pipeline.frames import clip_range, read_frames
from pipeline.learn.streaming.features import CPU
from pipeline.manifest import Clip
from pipeline.store import why_unfit


class EndToEnd(nn.Module):
    """The time-distributed network: the frozen trunk runs at every frame, then a model reads its maps.

    Maps are pooled and pass through the stored dtype, so that the outputs equal those of cached features, up
    to rounding. The trunk stays in eval mode, also while the model trains.
    """

    def __init__(self, model: nn.Module, *, contract: FeatureContract, weights: Weights) -> None:
        """On the CPU. Raises what `make_backbone` does, and ContractError for a network of windows."""
        if contract.windows:
            raise ContractError(
                f"{contract.arch} reads windows of {contract.windows.frames} frames: one module from frames"
                " to answers is for networks that read single frames. `predict` cuts windows itself."
            )
        super().__init__()
        self.contract = contract
        self.trunk = make_backbone(contract, weights, device=torch.device("cpu")).trunk
        self.model = model

    def train(self, mode: bool = True) -> Self:
        """Set the model's mode; the trunk stays in eval mode."""
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, frames: Tensor, lengths: Tensor | None = None, **inputs: Tensor) -> Any:
        """Frames (B, T, 3, H, W) uint8 RGB, resized and cropped, and lengths (B,) -> the model's outputs.

        Without `lengths` all frames are valid. `inputs` are passed to the model. Raises ShapeError for frames
        of another size or without the time axis.
        """
        height, width = self.contract.preprocessing.crop_size
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (3, height, width) or frames.dtype != torch.uint8:
            raise ShapeError(
                f"Frames are {tuple(frames.shape)} {frames.dtype}, but the network reads (B, T, 3, H, W) ="
                f" (clips, frames, 3, {height}, {width}) torch.uint8, resized and cropped as in extraction."
            )
        maps = self.trunk(frames.flatten(0, 1))[0]
        maps = as_stored(pooled(maps, self.contract), self.contract)  # (B * T, C, h, w)
        maps = maps.unflatten(0, frames.shape[:2])  # type: ignore[no-untyped-call]
        return self.model(maps, lengths, **inputs)


def make_backbone(contract: FeatureContract, weights: Weights, *, device: torch.device) -> Backbone:
    """The network that makes the contract's features, not compiled: compiling pays off for a corpus only.

    Raises WeightsError for other weights, ContractError when this version of the code, or
    of one's own network, makes other features.
    """
    check_weights(weights, contract)
    if contract.revision != REVISION:
        raise ContractError(
            f"The model was trained on features of revision {contract.revision}; this version of framecache"
            f" makes revision {REVISION}, which has other values. Extract and train again, or use the version"
            " that it was trained with."
        )
    if contract.code != weights.code:
        raise ContractError(
            f"The model was trained on features of another version of {contract.arch}: {contract.code}, and"
            f" here is {weights.code}. Extract and train again, or use that version."
        )
    return Backbone(
        weights,
        taps=[contract.tap],
        device=device,
        precision=contract.precision,
        crop=contract.preprocessing.crop_size,
        num_frames=contract.windows.frames if contract.windows else None,
        layouts={contract.tap: contract.layout} if contract.layout else None,
        class_token=contract.pooling == "cls",
    )


def clip_pixels(
    clip: Clip, *, root: Path, contract: FeatureContract, batch_size: int = 16, device: torch.device = CPU
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """A clip's frames as the network reads them, `batch_size` at a time.

    Yields frames (N, 3, H, W) uint8 on `device`, sampled, resized and cropped, and their times (N,) float64
    in seconds. Raises DecodeError when the clip's bytes are not frames, OSError when they can't be read.
    """
    for frames in read_frames(
        **clip_range(clip, root=root),
        sampling=contract.sampling,
        batch_size=batch_size,
        preprocessing=contract.view.zoomed(contract.preprocessing),
    ):
        yield (
            preprocess(torch.from_numpy(frames.pixels).to(device), contract.preprocessing, contract.view),
            frames.frame_seconds,
        )


def clip_rows(
    clip: Clip, *, root: Path, contract: FeatureContract, batch_size: int = 16, device: torch.device = CPU
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """What the network reads for each row of the features, and their times: frames, or windows of them.

    Raises what `clip_pixels` does.
    """
    frames = clip_pixels(clip, root=root, contract=contract, batch_size=batch_size, device=device)
    if contract.windows is None:
        yield from frames
        return
    cutter = WindowCutter(contract.windows)
    for pixels, seconds in frames:
        rows = cutter.add(pixels, seconds)
        if len(rows[1]):
            yield rows
    rows = cutter.end()
    if len(rows[1]):
        yield rows


def clip_features(
    clip: Clip,
    *,
    root: Path,
    backbone: Backbone,
    contract: FeatureContract,
    batch_size: int = 16,
    on_frames: Callable[[int], None] = lambda _: None,
) -> SpooledFeatures:
    """One clip's features: those that extraction would store, up to rounding. Close them, or use `with`.

    Frames are decoded and dropped `batch_size` at a time, and many features are in a temporary file: a long
    video takes no more memory than a short one. `on_frames` gets the number of frames read since its last
    call.

    Raises what `clip_pixels` does, and NonFiniteError for values that can't be stored.
    """
    with ExitStack() as stack:
        features = stack.enter_context(
            SpooledFeatures(clip.clip_id, path=root / clip.sources[0], contract=contract)
        )
        _compute(features, clip, root=root, backbone=backbone, batch_size=batch_size, on_frames=on_frames)
        stack.pop_all()
    return features


def _compute(
    features: SpooledFeatures,
    clip: Clip,
    *,
    root: Path,
    backbone: Backbone,
    batch_size: int,
    on_frames: Callable[[int], None],
) -> None:
    """Append the features of all frames of a clip."""
    contract = features.contract
    for pixels, seconds in clip_rows(
        clip, root=root, contract=contract, batch_size=batch_size, device=backbone.device
    ):
        values = pooled(backbone(pixels)[contract.tap], contract)  # (N, C, h, w)
        if reason := why_unfit(map_peaks(values).cpu().numpy(), seconds, contract):
            raise NonFiniteError(f"{clip.clip_id} has no features: {reason} Then extract and train again.")
        features.append(as_stored(values, contract).cpu(), seconds)
        on_frames(len(pixels))
