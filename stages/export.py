"""A checkpoint -> one file, from frames to the answer, for use without framecache: ONNX or torch.export."""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from pipeline.deploy.end_to_end import clip_pixels
from pipeline.deploy.export import FORMATS, clips_sentence, export_chain
from pipeline.deploy.export_captions import export_captioner
from pipeline.errors import ConfigError, PipelineError, error_text
from pipeline.learn.checkpoint import Checkpoint, load_checkpoint
from pipeline.manifest import Clip, read_manifest
from stages import console
from stages.params import CorpusConfig, load_section
from stages.predict import add_checkpoint_arguments, load_checkpoint_weights

_EPILOG = """The file takes frames (B, T, 3, H, W) uint8 RGB, sampled, resized and cropped as its metadata say
(framecache.json), and gives probabilities, or values in the manifest's unit. B and T are free; only of a
model that reads windows (train.window) T is the window. A model for questions has a second input, questions
(B, Q, S) int64, word numbers of the vocabulary in the metadata. A captioning model becomes two files: FILE
looks at the frames, and beside it FILE with .step before its suffix says the next word (`pydoc
pipeline.deploy.export_captions`). All are checked against the model on random frames and on those of a
clip, and are written only if both agree. ONNX needs `pip install 'framecache[export]'`."""

_NUM_FRAMES = 16  # of the clip to check with


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
        help=f"check with the clip's first T frames; by default train.window, or {_NUM_FRAMES}",
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
    num_frames = arguments.frames or checkpoint.config.window or _NUM_FRAMES
    source, real = _frames_to_check(arguments.clip, checkpoint=checkpoint, num_frames=num_frames)
    noise = torch.randint(
        0, 256, (3, *real.shape[1:]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    export = export_captioner if checkpoint.config.task == "captioning" else export_chain
    exported = export(
        checkpoint,
        weights,
        path=arguments.out,
        num_frames=real.shape[1],
        check_with=[noise, real],
        tolerance=arguments.tolerance,
    )
    _, _, _, height, width = real.shape
    length = exported.num_frames or "T"
    others = ", questions (B, Q, S) int64" if checkpoint.config.task == "question_answering" else ""
    frames = f"frames (B, {length}, 3, {height}, {width}) uint8"
    print(f"{arguments.out}: {frames}{others} -> {checkpoint.config.task}")
    names = ("random frames", f"frames of {source}")
    for name, difference in zip(names, exported.differences, strict=True):
        print(f"largest difference on {name}: {difference:.2g}")
    print(clips_sentence(checkpoint, num_frames=exported.num_frames))


def _frames_to_check(given: Path | None, *, checkpoint: Checkpoint, num_frames: int) -> tuple[str, Tensor]:
    """A clip's source, and its first frames (1, T, 3, H, W) uint8. Raises ConfigError when there are none."""
    try:
        clip, root = _clip_to_check(given)
        pixels = read_first_frames(clip, root=root, checkpoint=checkpoint, num_frames=num_frames)
    except (OSError, PipelineError) as error:
        remedy = "Name another one" if given else "Name any video or image"
        raise ConfigError(
            f"No clip to check the exported file with: {error_text(error).rstrip('.')}. {remedy}:"
            " --clip FILE."
        ) from None
    return clip.sources[0], pixels


def read_first_frames(clip: Clip, *, root: Path, checkpoint: Checkpoint, num_frames: int) -> Tensor:
    """At most `num_frames`, (1, T, 3, H, W) uint8; repeated from the start where a window needs more."""
    pixels: list[Tensor] = []
    for batch, _ in clip_pixels(clip, root=root, contract=checkpoint.contract):
        pixels += batch
        if len(pixels) >= num_frames:
            break
    if checkpoint.config.window:
        pixels = [pixels[number % len(pixels)] for number in range(num_frames)]
    return torch.stack(pixels[:num_frames])[None].contiguous()


def _clip_to_check(given: Path | None) -> tuple[Clip, Path]:
    """A clip and the folder that its sources are relative to."""
    if given is not None:
        return Clip(clip_id=str(given), sources=(str(given),), split=""), Path()
    corpus = load_section("corpus", CorpusConfig)
    return next(iter(read_manifest(Path(corpus.manifest)))), Path(corpus.root)


if __name__ == "__main__":
    console.run(main)
