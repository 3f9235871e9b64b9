"""New videos and images -> answers: runs a checkpoint on sources that are in no manifest."""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.backbone import Weights
from pipeline.backbone.weights import find_weights, load_weights
from pipeline.corpora import walk
from pipeline.deploy.end_to_end import answer_clip, make_backbone
from pipeline.errors import DecodeError, NonFiniteError, PipelineError, WeightsError, error_text
from pipeline.frames import is_image, is_video
from pipeline.learn.checkpoint import Checkpoint, load_checkpoint
from pipeline.learn.tasks import QuestionAnswering
from pipeline.manifest import Clip, Question
from pipeline.system.devices import resolve_device
from pipeline.system.memory import is_out_of_memory
from stages import console

log = logging.getLogger(__name__)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stages.predict",
        description=__doc__,
        epilog="A source is a video, an image, or a folder: of images, which is one clip, or of clips and"
        " such folders; beside videos each image is a clip. Frames are sampled and preprocessed as the"
        " model's features were. Exits with 1 when a source could not be read or answered; the others are"
        " answered.",
    )
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="video, image or folder")
    add_checkpoint_arguments(parser)
    parser.add_argument(
        "--top", type=int, default=1, metavar="K", help="so many answers, if ranked (%(default)s)"
    )
    parser.add_argument(
        "--image-fps", type=float, default=1.0, help="rate of a folder's images (%(default)s)"
    )
    parser.add_argument(
        "--question",
        action="append",
        default=[],
        metavar="TEXT",
        help="what a model for question_answering is asked; may be given several times",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top {arguments.top}: give at least 1")
    if not 0 < arguments.image_fps < math.inf:
        parser.error(f"--image-fps {arguments.image_fps}: give a rate above 0")

    device = resolve_device(arguments.device)
    checkpoint = load_checkpoint(arguments.checkpoint)
    task = checkpoint.config.task
    if bool(arguments.question) != (task == "question_answering"):
        parser.error(f"the model's task is {task}: --question is for question_answering, which needs it")
    if isinstance(checkpoint.task, QuestionAnswering):
        unknown = checkpoint.task.vocabulary.unknown_words(arguments.question)
        if unknown:
            log.warning("The model has not learned: %s.", ", ".join(unknown))
    weights = load_checkpoint_weights(checkpoint, given=arguments.weights)
    checkpoint.model.to(device)
    backbone = make_backbone(checkpoint.contract, weights, device=device)
    sources = [source for given in arguments.sources for source in find_sources(given)]
    results: list[dict[str, Any]] = []
    with tqdm(total=len(sources), unit="clip", desc="predict") as bar:
        for source in sources:
            clip = Clip(
                clip_id=str(source),
                sources=(str(source),),
                split="",
                questions=tuple(Question(text, answer="") for text in arguments.question),
                image_fps=arguments.image_fps,
            )
            try:
                answers = answer_clip(
                    clip,
                    root=Path(),
                    checkpoint=checkpoint,
                    backbone=backbone,
                    num_answers=arguments.top,
                )
                results.append({"source": str(source), "answers": answers})
            except (DecodeError, NonFiniteError, OSError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                    raise
                log.error("%s", error_text(error))
                results.append({"source": str(source), "error": error_text(error)})
            bar.update()
    if arguments.json:
        print(json.dumps(results, indent=1, allow_nan=False))
    else:
        console.print_table(
            [
                {"source": result["source"], **{name: _cell(value) for name, value in row.items()}}
                for result in results
                for row in result.get("answers", ())
            ]
        )
    if num_failed := sum("error" in result for result in results):
        raise PipelineError(
            f"{num_failed} of {len(results)} sources could not be read or answered, see above."
        )


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=Path("checkpoints/recurrent"),
        metavar="FOLDER",
        help="the trained model (%(default)s)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="the network's weights file; by default the one in weights/ with the digest that is needed",
    )


def load_checkpoint_weights(checkpoint: Checkpoint, *, given: Path | None) -> Weights:
    """The weights that the model's features were made with. Raises WeightsError, with their source."""
    contract = checkpoint.contract
    path = given or find_weights(contract.weights_sha256, folder=Path("weights"))
    if path is None:
        source = checkpoint.weights_source
        raise WeightsError(
            f"No file in weights/ is the {contract.arch} that the model's features were made with (from"
            f" {source}, sha256 {contract.weights_sha256}). Set weights.arch and weights.source to it and run"
            " `python -m stages.weights`, or name the file: --weights FILE."
        )
    return load_weights(path)


def find_sources(path: Path) -> list[Path]:
    """A file itself; of a folder, all clips in it and below it, sorted. A folder without clips is itself.

    A folder's images are one clip, unless videos lie beside them: then each image is a clip as well.
    """
    clips: list[Path] = []
    for folder, files in walk(path) if path.is_dir() else ():
        images, videos = list(filter(is_image, files)), list(filter(is_video, files))
        if images and videos:
            log.warning("%s holds videos beside images: each image is a clip of its own.", folder)
        clips += [*images, *videos] if videos else [folder] * bool(images)
    return sorted(clips) or [path]


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


if __name__ == "__main__":
    console.run(main)
