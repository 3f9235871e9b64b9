"""A checkpoint -> one file, from frames to the answer, for use without framecache: ONNX or torch.export."""

import argparse
from pathlib import Path

from pipeline.deploy.export import export
from pipeline.deploy.export_formats import FORMATS
from pipeline.errors import CheckClipError, PipelineError, error_text
from pipeline.manifest import read_manifest
from stages import console
from stages.params import read_params
from stages.predict import add_checkpoint_arguments, named_code
from stages.project.visible import corpus_root

_EPILOG = """The file takes frames (B, T, 3, H, W) uint8 RGB, sampled, resized and cropped as its metadata say
(framecache.json), and gives probabilities, or values in the manifest's unit. B and T are free; only of a
model that reads windows (train.window) T is the window. A model for questions has a second input, questions
(B, Q, S) int64, word numbers of the vocabulary in the metadata. A captioning model becomes two files: FILE
reads the frames, and beside it FILE with .step before its suffix says the next word (`pydoc
pipeline.deploy.export_captions`). All are compared with the model on random frames and on those of a
clip, and are written only if both agree. ONNX needs `pip install 'framecache[export]'`."""


def main() -> None:
    """Export as the arguments say, and print what the file takes."""
    parser = argparse.ArgumentParser(prog="python -m stages.export", description=__doc__, epilog=_EPILOG)
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help=f"file to write: {' or '.join(FORMATS)}"
    )
    parser.add_argument(
        "--frames", type=int, metavar="T", help="compare on T frames; by default train.window, or 16"
    )
    parser.add_argument(
        "--clip",
        type=Path,
        metavar="SOURCE",
        help="video, image or folder of images to compare on; by default that of the manifest's first clip",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest difference of an answer (%(default)s)"
    )
    arguments = parser.parse_args()
    exported = export(
        arguments.checkpoint,
        arguments.out,
        weights=arguments.weights,
        own=named_code(),
        source=arguments.clip or _first_source(),
        num_frames=arguments.frames,
        tolerance=arguments.tolerance,
    )
    print(f"{exported.path}: {exported.inputs} -> {exported.task}")
    for name, difference in exported.differences.items():
        print(f"largest difference on {name}: {difference:.2g}")
    print(exported.clips)


def _first_source() -> Path:
    """The first source of the manifest. Raises CheckClipError where there is no corpus."""
    try:
        corpus = read_params().corpus
        return Path(corpus_root(corpus.root), next(iter(read_manifest(Path(corpus.manifest)))).sources[0])
    except (OSError, PipelineError) as error:
        raise CheckClipError(f"No clip to compare the exported file with: {error_text(error)}") from None


if __name__ == "__main__":
    console.run(main)
