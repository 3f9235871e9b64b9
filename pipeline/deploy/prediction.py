"""Prediction: a checkpoint's answers for videos and images that are in no manifest."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from pipeline.backbone import Backbone
from pipeline.backbone.weights import UNKNOWN_SOURCE, find_weights
from pipeline.contract import CENTER, FrameView
from pipeline.corpora import table_clips, walk
from pipeline.deploy.end_to_end import clip_features, make_backbone
from pipeline.errors import ConfigError, DecodeError, NonFiniteError, error_text
from pipeline.learn.answering import Answering, mean_predictions
from pipeline.learn.checkpoint import DESCRIPTION, Checkpoint, load_checkpoint
from pipeline.learn.streaming import FusedFeatures, make_loader
from pipeline.learn.tasks import Classification, Rows
from pipeline.manifest import Clip, Question, is_image, is_video
from pipeline.settings.evaluation import needs_whole_clips
from pipeline.settings.views import Views
from pipeline.system.devices import resolve_device
from pipeline.system.memory import is_out_of_memory
from pipeline.system.own_code import OwnCode

log = logging.getLogger(__name__)

_CHUNK_FRAMES = 256  # in memory at a time


@dataclass(frozen=True)
class SourceAnswers:
    """What a model says of a source, or why it says nothing."""

    source: str
    answers: tuple[dict[str, str | float], ...] = ()  # the likeliest first; see `Task.render`
    error: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict)  # columns meta_<name> of a table of clips, by name


def predict(
    checkpoint: str | Path,
    sources: Sequence[str | Path],
    *,
    weights: str | Path = "weights",
    own: OwnCode | None = None,
    num_answers: int = 1,
    questions: Sequence[str] = (),
    image_fps: float = 1.0,
    each_frame: bool = False,
    chunk_frames: int | None = None,
    views: Sequence[str | FrameView] = (CENTER,),
    device: str = "auto",
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[SourceAnswers]:
    """Answer what the checkpoint was trained to answer, for new sources.

    Frames are sampled and preprocessed as the features that the model was trained on. A source that can't be
    read or answered is logged and has an `error`; the others are answered.

    Args:
        checkpoint: the folder of a trained model, such as checkpoints/recurrent; or the folder that
            `stages.folds` wrote, checkpoints/folds: then probabilities are the mean over the models of folds.
        sources: videos, images and folders, see `find_sources`; or tables of clips, .csv or .parquet, see
            `table_clips`. In the answers, a clip of a table has its clip_id as source.
        weights: the weights file of the network that made the features, or a folder that has it.
        own: the user's code that builds the network, where torchvision does not; no other is imported.
        num_answers: how many of the likeliest answers to give, where the task ranks them.
        questions: what to ask about each source, for a model that answers questions.
        image_fps: the rate of a folder's images, which gives their times, where a table has none.
        each_frame: give a label for each frame, see `Task.render_frames`, instead of intervals.
        chunk_frames: read each source whole, so many frames at a time, even if the model was trained on
            windows; None: windows as in training. Whole clips are also read in chunks then, if the model can.
        views: probabilities and values are the mean over these views of each frame, such as center and flip.
            Each one costs as much as the first.
        device: auto, cpu, cuda, cuda:1, ...
        on_progress: called with the number of sources that are done, and the number of all.

    Raises:
        ConfigError: for an option that is impossible, or that the model does not have, or a device that is
            not there.
        QuestionsError: for questions to a model that takes none, or none to a model that needs them.
        WeightsError: when the network's weights are missing, or are others.
        ContractError: when this version of the code makes other features.
        PipelineError: when there is no checkpoint, or one of another version.
    """
    if isinstance(sources, str | Path):
        raise TypeError(f"sources are a list: give [{str(sources)!r}].")
    if num_answers < 1:
        raise ConfigError(f"{num_answers} answers: give at least 1.")
    if not 0 < image_fps < math.inf:
        raise ConfigError(f"image_fps {image_fps}: give a rate above 0.")
    if chunk_frames is not None and chunk_frames < 1:
        raise ConfigError(f"chunk_frames {chunk_frames}: give at least 1.")
    try:
        frame_views = TypeAdapter(Views).validate_python(views)
    except ValidationError as error:
        reasons = "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        raise ConfigError(f"views {list(map(str, views))}: {reasons}.") from None
    torch_device = resolve_device(device)
    trained, *others = _load(Path(checkpoint))
    trained.task.check_questions(questions)
    if each_frame and not (trained.task.facts.per_frame and trained.task.about_frames):
        raise ConfigError(f"The model's task is {trained.task.name}: it has no answer for each frame.")
    if chunk_frames and (reason := needs_whole_clips(trained.config)):
        raise ConfigError(f"The model can't read clips in chunks of {chunk_frames} frames: {reason}.")
    if frame_views != (CENTER,) and not trained.task.facts.has_mean_answers:
        raise ConfigError(f"The model's task is {trained.task.name}: answers in several views have no mean.")
    for each in (trained, *others):
        each.model.to(torch_device)
    sources_of = [trained.weights_source, *(UNKNOWN_SOURCE for _ in trained.streams)]
    backbones = [
        make_backbone(
            contract, find_weights(contract, place=Path(weights), source=source, own=own), device=torch_device
        )
        for contract, source in zip(trained.contracts, sources_of, strict=True)
    ]
    found = [clip for source in sources for clip in _find_clips(Path(source))]
    results: list[SourceAnswers] = []
    for clip in found:
        on_progress(len(results), len(found))
        source = clip.clip_id
        asked = tuple(Question(text, answer="") for text in questions)
        rate = clip.image_fps if clip.image_fps != 1 else image_fps
        clip = replace(clip, questions=asked, image_fps=rate)
        try:
            answers = answer_clip(
                clip,
                root=Path(),
                checkpoint=trained,
                others=others,
                backbones=backbones,
                num_answers=num_answers,
                each_frame=each_frame,
                chunk_frames=chunk_frames,
                views=frame_views,
            )
            results.append(SourceAnswers(source, tuple(answers)))
        except (DecodeError, NonFiniteError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            log.error("%s", error_text(error))
            results.append(SourceAnswers(source, error=error_text(error)))
    on_progress(len(results), len(found))
    return [replace(result, meta=clip.meta) for result, clip in zip(results, found, strict=True)]


def answer_clip(
    clip: Clip,
    *,
    root: Path,
    checkpoint: Checkpoint,
    others: Sequence[Checkpoint] = (),
    backbones: Sequence[Backbone],
    num_answers: int = 1,
    each_frame: bool = False,
    chunk_frames: int | None = None,
    views: Sequence[FrameView] = (CENTER,),
) -> Rows:
    """The answers of the checkpoint's model for a clip that has no stored features, as rows of `Task.render`.

    `backbones` are the networks of the checkpoint's tap and of its streams, each of which reads the clip.
    Probabilities are the mean over this model and `others`, which are of the same features and classes.
    Windows and the mean of their answers are those of evaluation. A model that reads whole clips reads them
    in chunks, if it can, so that a long clip takes no more memory. `each_frame`, `chunk_frames` and `views`
    are as in `predict`. Raises what `clip_features` does.
    """
    task, config = checkpoint.task, checkpoint.config
    if config.window is None and not needs_whole_clips(config):
        chunk_frames = chunk_frames or _CHUNK_FRAMES
    found = []
    for view in views:
        with ExitStack() as stack:
            streams = [
                stack.enter_context(
                    clip_features(
                        clip,
                        root=root,
                        backbone=backbone,
                        contract=contract.model_copy(update={"view": view}),
                    )
                )
                for backbone, contract in zip(backbones, checkpoint.contracts, strict=True)
            ]
            features = FusedFeatures(streams) if checkpoint.streams else streams[0]
            device = backbones[0].device
            for each in (checkpoint, *others):
                answering = Answering(each.model, task=task, device=device, labelled=False)
                if chunk_frames:
                    answering.add_clip(clip, features, chunk_frames=chunk_frames)
                else:
                    for batch in make_loader(features, [clip], config, device=device).epoch():
                        answering.add(batch)
                found.append(answering.predictions())
    predictions = mean_predictions(found, task=task)
    output, frame_seconds = predictions.outputs[0], predictions.frame_seconds[0]
    if each_frame:
        return task.render_frames(output, frame_seconds)
    return task.render(output, frame_seconds, num_answers=num_answers)


def _load(path: Path) -> list[Checkpoint]:
    """The checkpoint in a folder; of a folder with one a fold, those of all folds.

    Raises ConfigError for folds whose answers have no mean.
    """
    folds = [] if (path / DESCRIPTION).exists() else sorted(path.glob(f"*/recurrent/{DESCRIPTION}"))
    if not folds:
        return [load_checkpoint(path)]
    first, *others = trained = [load_checkpoint(each.parent) for each in folds]
    task, facts = first.task, first.task.facts
    if not isinstance(task, Classification) or facts.is_multilabel:
        raise ConfigError(f"The task of {path} is {task.name}: answers of folds have no mean. Name one fold.")
    for each in others:
        same_classes = isinstance(each.task, Classification) and each.task.classes == task.classes
        if each.contracts != first.contracts or not same_classes:
            raise ConfigError(f"The folds in {path} have other features or classes. Name one fold.")
    return trained


def _find_clips(path: Path) -> list[Clip]:
    """The clips of a path, with sources that are relative to the current folder."""
    if path.suffix not in (".csv", ".parquet"):
        return [Clip(clip_id=str(file), sources=(str(file),), split="") for file in find_sources(path)]
    return [
        replace(clip, sources=tuple(str(path.parent / source) for source in clip.sources))
        for clip in table_clips(path)
    ]


def find_sources(path: Path) -> list[Path]:
    """The clips of a path: a file itself; of a folder all clips in it and below it, sorted.

    A folder's images are one clip, unless videos lie beside them: then each image is a clip of its own. A
    folder without any clip is given back as it is: reading it gives the error.
    """
    clips: list[Path] = []
    for folder, files in walk(path) if path.is_dir() else ():
        images, videos = list(filter(is_image, files)), list(filter(is_video, files))
        if images and videos:
            log.warning("%s holds videos beside images: each image is a clip of its own.", folder)
        clips += [*images, *videos] if videos else [folder] * bool(images)
    return sorted(clips) or [path]
