"""Frames in, answer out: the frozen network and a trained model as one, by the checkpoint's own contract.

Two routes to the same numbers: features of one clip, computed as extraction does and read by the model as
in evaluation (`clip_features`; any source, any length), and one module from pixels to outputs (`EndToEnd`;
what is exported).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.backbone import Backbone, Weights, preprocess
from pipeline.contract import REVISION, FeatureContract
from pipeline.errors import ContractError, NonFiniteError, ShapeError, WeightsError
from pipeline.extraction.runners import cast, pooled, row_peaks
from pipeline.frames import clip_range, read_frames
from pipeline.learn.checkpoint import Checkpoint
from pipeline.learn.evaluation import answer_batches
from pipeline.learn.streaming import ResidentFeatures, make_loader
from pipeline.learn.streaming.features import CPU
from pipeline.manifest import Clip
from pipeline.store import why_unfit


class EndToEnd(nn.Module):
    """The time-distributed network: the frozen trunk at every frame, then a model that reads its maps.

    Equal to cached features and the model, up to rounding: maps are pooled and pass through the stored
    dtype. The trunk does not train, whatever `train` is told; the model may.
    """

    def __init__(self, model: nn.Module, *, contract: FeatureContract, weights: Weights) -> None:
        """On the CPU. Raises what `make_backbone` does."""
        super().__init__()
        self.contract = contract
        self.trunk = make_backbone(contract, weights, device=torch.device("cpu")).trunk
        self.model = model

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.trunk.eval()
        return self

    def forward(self, frames: Tensor, lengths: Tensor | None = None, **inputs: Tensor) -> Any:
        """Frames (B, T, 3, H, W) uint8 RGB, resized and cropped, and lengths (B,) -> the model's outputs.

        Without `lengths` all frames are valid. `inputs` go to the model. Raises ShapeError for frames of
        another size or without the time axis.
        """
        height, width = self.contract.preprocessing.crop_size
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (3, height, width) or frames.dtype != torch.uint8:
            raise ShapeError(
                f"Frames are {tuple(frames.shape)} {frames.dtype}, but the network reads (B, T, 3, H, W) ="
                f" (clips, frames, 3, {height}, {width}) torch.uint8, as extract.preprocessing gives them."
            )
        maps = self.trunk(frames.flatten(0, 1))[0]
        maps = cast(pooled(maps, self.contract), self.contract)  # (B * T, C, h, w)
        maps = maps.unflatten(0, frames.shape[:2])  # type: ignore[no-untyped-call]
        return self.model(maps, lengths, **inputs)


def make_backbone(contract: FeatureContract, weights: Weights, *, device: torch.device) -> Backbone:
    """The network that makes the contract's features, eager: compiling pays for a corpus, not for a clip.

    Raises WeightsError for other weights, ContractError when the code's revision is another.
    """
    if weights.sha256 != contract.weights_sha256:
        raise WeightsError(
            f"These weights are {weights.arch} from {weights.source} with sha256 {weights.sha256}, but the"
            f" model was trained on features of {contract.arch} with sha256 {contract.weights_sha256}. Give"
            " those."
        )
    if contract.revision != REVISION:
        raise ContractError(
            f"The model was trained on features of revision {contract.revision}; this version of framecache"
            f" makes revision {REVISION}, which has other values. Extract and train again, or use the version"
            " that it was trained with."
        )
    return Backbone(weights, taps=[contract.tap], device=device, precision=contract.precision)


def clip_pixels(
    clip: Clip, *, root: Path, contract: FeatureContract, batch_size: int = 16, device: torch.device = CPU
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """What the network sees of a clip: frames (N, 3, H, W) uint8, sampled, resized and cropped; times (N,).

    Raises DecodeError when the clip's bytes are not frames, OSError when they can't be read.
    """
    for frames in read_frames(
        **clip_range(clip, root=root),
        sampling=contract.sampling,
        batch_size=batch_size,
        preprocessing=contract.preprocessing,
    ):
        yield (
            preprocess(torch.from_numpy(frames.pixels).to(device), contract.preprocessing),
            frames.frame_seconds,
        )


def clip_features(
    clip: Clip,
    *,
    root: Path,
    backbone: Backbone,
    contract: FeatureContract,
    batch_size: int = 16,
    on_frames: Callable[[int], None] = lambda _: None,
) -> ResidentFeatures:
    """One clip's features as the contract says, on the CPU: what extraction would store, up to rounding.

    Frames are decoded and dropped `batch_size` at a time, so a long video takes the memory of its features
    alone. `on_frames` is told how many were read since the last call.

    Raises what `clip_pixels` does, and NonFiniteError for values that can't be stored.
    """
    maps, frame_seconds = [], []
    for pixels, seconds in clip_pixels(
        clip, root=root, contract=contract, batch_size=batch_size, device=backbone.device
    ):
        values = pooled(backbone(pixels)[contract.tap], contract)  # (N, C, h, w)
        if reason := why_unfit(row_peaks(values).cpu().numpy(), seconds, contract):
            raise NonFiniteError(f"{clip.clip_id} has no features: {reason} Then extract and train again.")
        maps.append(cast(values, contract).cpu())
        frame_seconds.append(seconds)
        on_frames(len(pixels))
    num_frames = sum(map(len, maps))
    return ResidentFeatures(
        path=root / clip.sources[0],
        contract=contract,
        rows=torch.cat(maps),
        row_frame_seconds=np.concatenate(frame_seconds),
        spans={clip.clip_id: (0, num_frames)},
    )


def answer_clip(
    clip: Clip,
    *,
    root: Path,
    checkpoint: Checkpoint,
    backbone: Backbone,
    num_answers: int = 1,
    on_frames: Callable[[int], None] = lambda _: None,
) -> list[dict[str, str | float]]:
    """What the checkpoint's model says of a clip that nobody has extracted, as `Task.render` puts it.

    Windows and their merging are those of evaluation. Raises what `clip_features` does.
    """
    features = clip_features(
        clip, root=root, backbone=backbone, contract=checkpoint.contract, on_frames=on_frames
    )
    loader = make_loader(features, [clip], checkpoint.config, device=backbone.device)
    predictions = answer_batches(
        checkpoint.model, loader.epoch(), task=checkpoint.task, device=backbone.device, labelled=False
    )
    return checkpoint.task.render(
        predictions.outputs[0], predictions.frame_seconds[0], num_answers=num_answers
    )
