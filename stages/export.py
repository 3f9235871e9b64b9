"""A checkpoint -> one file, from frames to the answer, for use without framecache: ONNX or torch.export."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pipeline.checkpoint import Checkpoint, load_checkpoint
from pipeline.end_to_end import clip_pixels
from pipeline.errors import ConfigError
from pipeline.export import FORMATS, export_chain
from pipeline.export_captions import export_captioner
from pipeline.manifest import Clip, read_manifest
from stages import console
from stages.params import CorpusConfig, load_section
from stages.predict import add_checkpoint_arguments, load_checkpoint_weights

_EPILOG = """The file takes frames (B, T, 3, H, W) uint8 RGB, resized and cropped as its metadata say
(framecache.json), and gives probabilities, or values in the manifest's unit. B is free; T is free in a .pt2
with an LSTM, and fixed otherwise. A model for questions has a second input, questions (B, Q, S) int64, word
numbers of the vocabulary in the metadata. A captioning model becomes two files: FILE looks at the frames, and
beside it FILE with .step before its suffix says the next word (`pydoc pipeline.export_captions`). All are
checked against the model on random frames and on those of a clip, and are written only if both agree. ONNX
needs `pip install '.[export]'`."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.export", description=__doc__, epilog=_EPILOG)
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"file to write: {' or '.join(FORMATS)}"
    )
    parser.add_argument(
        "--frames",
        type=int,
        metavar="T",
        help="frames of a clip; by default train.window or extract.sampling's count, if the model has one",
    )
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="SOURCE",
        help="video, image or folder of images to check with; by default the manifest's first clip",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest difference of an answer (%(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.frames is not None and arguments.frames < 1:
        parser.error(f"--frames {arguments.frames}: give at least 1")

    checkpoint = load_checkpoint(arguments.checkpoint)
    weights = load_checkpoint_weights(checkpoint, given=arguments.weights)
    num_frames = arguments.frames or checkpoint.config.window or checkpoint.contract.sampling.count
    if num_frames is None:
        raise ConfigError("The model reads clips of any length, the exported file of one: give --frames.")
    clip, root = _clip_to_check(arguments.clip)
    real = read_clip(clip, root=root, checkpoint=checkpoint, num_frames=num_frames)  # (1, T, 3, H, W)
    noise = torch.randint(
        0, 256, (3, *real.shape[1:]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    export = export_captioner if checkpoint.config.task == "captioning" else export_chain
    exported = export(
        checkpoint,
        weights,
        path=arguments.out,
        num_frames=num_frames,
        check_with=[noise, real],
        tolerance=arguments.tolerance,
    )
    _, _, _, height, width = real.shape
    length = "T" if exported.any_num_frames else num_frames
    others = ", questions (B, Q, S) int64" if checkpoint.config.task == "question_answering" else ""
    frames = f"frames (B, {length}, 3, {height}, {width}) uint8"
    print(f"{arguments.out}: {frames}{others} -> {checkpoint.config.task}")
    names = ("random frames", f"frames of {clip.sources[0]}")
    for name, difference in zip(names, exported.differences, strict=True):
        print(f"largest difference on {name}: {difference:.2g}")


def read_clip(clip: Clip, *, root: Path, checkpoint: Checkpoint, num_frames: int) -> Tensor:
    """The clip's first frames, repeated from the start where it has fewer, (1, T, 3, H, W) uint8."""
    pixels: list[Tensor] = []
    for batch, _ in clip_pixels(clip, root=root, contract=checkpoint.contract):
        pixels += batch
        if len(pixels) >= num_frames:
            break
    return torch.stack([pixels[number % len(pixels)] for number in range(num_frames)])[None].contiguous()


def _clip_to_check(given: Path | None) -> tuple[Clip, Path]:
    """A clip and the folder that its sources are relative to."""
    if given is not None:
        return Clip(clip_id=str(given), sources=(str(given),), split=""), Path()
    corpus = load_section("corpus", CorpusConfig)
    return next(iter(read_manifest(Path(corpus.manifest)))), Path(corpus.root)


if __name__ == "__main__":
    console.run(main)
