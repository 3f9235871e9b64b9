"""Export: a trained model and the frozen network before it as files that need no framecache.

Outside of the files are decoding, sampling, resizing and cropping: the contract in the file's metadata says
how. The batch's size is free, and so is the number of frames, except where a model reads windows: its file
takes exactly one window, since it does not average answers.
"""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.backbone.weights import find_weights
from pipeline.deploy.end_to_end import clip_pixels
from pipeline.deploy.export_captions import export_captioner
from pipeline.deploy.export_chain import export_chain
from pipeline.deploy.export_tracing import Exported
from pipeline.errors import CheckClipError, ConfigError, DecodeError, error_text
from pipeline.learn.checkpoint import Checkpoint, load_checkpoint
from pipeline.manifest import Clip
from pipeline.system.own_code import OwnCode

_NUM_FRAMES = 16  # that a file is checked with, if nothing else is said


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    weights: str | Path = "weights",
    own: OwnCode | None = None,
    source: str | Path | None = None,
    num_frames: int | None = None,
    tolerance: float = 1e-3,
) -> Exported:
    """Write a trained model, from frames to its answers, as one file; a model that says words as two.

    The files are compared with the model on random frames and on those of `source`, and are kept only if
    both agree.

    Args:
        checkpoint: the folder of a trained model, such as checkpoints/recurrent.
        out: the file to write, .onnx or .pt2; a second one gets .step before the suffix.
        weights: the weights file of the network that made the features, or a folder that has it.
        own: the user's code that builds the network, where torchvision does not; no other is imported.
        source: a video, an image or a folder of images to compare with; None: random frames only.
        num_frames: how many frames to compare with; None: the model's window, or 16.
        tolerance: the largest difference of an answer, relative to the largest answer where that is above 1.

    Raises:
        CheckClipError: when the source can't be read.
        ConfigError: for another suffix, a number of frames that the model does not read, or several streams.
        MissingPackageError: for .onnx without the packages that it needs.
        WeightsError: when the network's weights are missing, or are others.
        PipelineError: when a difference is above the tolerance, or there is no checkpoint.
    """
    if num_frames is not None and num_frames < 1:
        raise ConfigError(f"{num_frames} frames to compare with: give at least 1.")
    trained = load_checkpoint(Path(checkpoint))
    if trained.streams:
        names = ", ".join([trained.config.tap, *trained.streams])
        raise ConfigError(
            f"The model reads the streams {names}: an exported file has one tap of one network. `predict`"
            " reads all streams."
        )
    network = find_weights(trained.contract, place=Path(weights), source=trained.weights_source, own=own)
    count = num_frames or trained.config.window or _NUM_FRAMES
    frames = {"random frames": _random_frames(trained, num_frames=count)}
    if source is not None:
        frames[f"frames of {source}"] = _first_frames(trained, source, num_frames=count)
    write = export_captioner if trained.task.facts.says_words else export_chain
    return write(trained, network, path=Path(out), num_frames=count, check_with=frames, tolerance=tolerance)


def _random_frames(checkpoint: Checkpoint, *, num_frames: int) -> Tensor:
    """Three clips (3, T, 3, H, W) uint8, always the same."""
    shape = (3, num_frames, 3, *checkpoint.contract.preprocessing.crop_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _first_frames(checkpoint: Checkpoint, source: str | Path, *, num_frames: int) -> Tensor:
    """The first frames (1, T, 3, H, W) uint8 of a source, from its start again where it has fewer."""
    clip = Clip(clip_id=str(source), sources=(str(source),), split="")
    pixels: list[Tensor] = []
    try:
        for batch, _ in clip_pixels(clip, root=Path(), contract=checkpoint.contract):
            pixels += batch
            if len(pixels) >= num_frames:
                break
    except (DecodeError, OSError) as error:
        raise CheckClipError(f"No clip to compare the exported file with: {error_text(error)}") from None
    return torch.stack([pixels[number % len(pixels)] for number in range(num_frames)])[None]
