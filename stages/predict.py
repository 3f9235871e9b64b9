"""New videos and images -> answers: runs a checkpoint on sources that are in no manifest."""

import argparse
import json
from functools import partial
from pathlib import Path

from pipeline.backbone.sources import own_code
from pipeline.deploy.prediction import SourceAnswers, predict
from pipeline.errors import PipelineError
from pipeline.manifest import META
from pipeline.system.own_code import OwnCode
from stages import console
from stages.bars import Bars
from stages.machine import read_machine
from stages.params import PARAMS, read_params


def main() -> None:
    """Answer the sources that the arguments name, and print the answers."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.predict",
        description=__doc__,
        epilog="A source is a video, an image, or a folder: of images, which is one clip, or of clips and"
        " such folders; beside videos each image is a clip. Or it is a table of clips, a CSV or Parquet with"
        " the column source, relative to its folder, and any other column of a manifest. Frames are sampled"
        " and preprocessed as the model's features were. Exits with 1 when a source could not be read or"
        " answered; the others are answered.",
    )
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="video, image, folder or table of clips")
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
        help="what to ask a model that answers questions; may be given several times",
    )
    parser.add_argument(
        "--frames",
        action="store_true",
        help="print the labels of each frame, with its time, if the model labels frames; without: intervals",
    )
    parser.add_argument(
        "--chunk-frames",
        type=int,
        metavar="N",
        help="read each source whole, N frames at a time, even if the model was trained on windows",
    )
    parser.add_argument(
        "--view",
        action="append",
        metavar="NAME",
        help="take the mean answer over these views: center, flip, corners, top_left, scale0.8, ...; may be"
        " given several times (center)",
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1, ...; by default as in machine.yaml")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with Bars("clip") as bars:
        results = predict(
            arguments.checkpoint,
            arguments.sources,
            weights=arguments.weights,
            own=named_code(),
            num_answers=arguments.top,
            questions=arguments.question,
            image_fps=arguments.image_fps,
            each_frame=arguments.frames,
            chunk_frames=arguments.chunk_frames,
            views=arguments.view or ["center"],
            device=arguments.device or read_machine().device,
            on_progress=partial(bars.show, "predict"),
        )
    if arguments.json:
        print(json.dumps(list(map(_as_json, results)), indent=1, allow_nan=False))
    else:
        own = sorted({name for result in results for name in result.meta})
        names = list(dict.fromkeys(name for result in results for row in result.answers for name in row))
        console.print_table(
            [
                {
                    "source": result.source,
                    **{f"{META}{name}": result.meta.get(name, "") for name in own},
                    **{name: _cell(row.get(name, "-")) for name in names},
                }
                for result in results
                if result.error is None
                for row in result.answers or [{}]  # none of several labels is said
            ]
        )
    if num_failed := sum(result.error is not None for result in results):
        raise PipelineError(
            f"{num_failed} of {len(results)} sources could not be read or answered, see above."
        )


def named_code() -> OwnCode | None:
    """The code of one's own network that params.yaml names; None where it names none, or is not there."""
    return own_code(read_params().weights) if PARAMS.is_file() else None


def add_checkpoint_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a trained model and its network's weights, for predict and export."""
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
        default=Path("weights"),
        metavar="FILE",
        help="the network's weights file, or a folder that has it (%(default)s)",
    )


def _as_json(result: SourceAnswers) -> dict[str, object]:
    said = {"answers": result.answers} if result.error is None else {"error": result.error}
    own = {f"{META}{name}": value for name, value in result.meta.items()}
    return {"source": result.source, **own, **said}


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.4f}"


if __name__ == "__main__":
    console.run(main)
