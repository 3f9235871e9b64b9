"""Plots of an evaluation: the tables that DVC draws, and pictures of some clips' answers."""

import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np

from pipeline.errors import DecodeError, error_text
from pipeline.learn.comparison import Evaluation
from pipeline.learn.models.captioning import CaptionModel
from pipeline.learn.tasks import Classification, Predictions
from pipeline.manifest import Clip
from pipeline.report.caption_page import write_caption_page
from pipeline.report.drawings import Timeline, draw_comparison, draw_frame_weights, draw_timelines
from pipeline.report.tables import write_tables

log = logging.getLogger(__name__)

_NUM_DRAWN = 8  # clips in a picture
_NUM_CAPTIONED = 6  # clips on the page of captions


def write_plots(
    folder: Path, evaluation: Evaluation, *, frames: Callable[[Clip], np.ndarray] | None = None
) -> None:
    """Write the tables of the model's answers, and below images/ the pictures that its task and model have.

    `frames` reads a clip's frames (T, H, W, 3) uint8 for the page of captions; a clip for which it raises
    DecodeError or OSError is drawn without them, and a warning says so.
    """
    task, predictions, images = evaluation.checkpoint.task, evaluation.answers, folder / "images"
    write_tables(folder, evaluation.predictions)
    metrics = {evaluation.labels[name]: score.metrics for name, score in evaluation.scores.items()}
    draw_comparison(images / "comparison.png", metrics)
    if isinstance(task, Classification) and task.facts.per_frame and not task.facts.is_multilabel:
        draw_timelines(images / "timelines.png", _timelines(predictions), classes=task.classes)
    if evaluation.frame_weights:
        draw_frame_weights(images / "attention.png", evaluation.frame_weights[:_NUM_DRAWN])
    if task.facts.says_words:
        config, path = evaluation.checkpoint.config, images / "captions.png"
        write_caption_page(
            path,
            predictions,
            scan="frames" if config.frame_net else config.scan,
            map_size=cast(CaptionModel, evaluation.checkpoint.model).clip.steps.map_size,
            frames=_read_frames(predictions, frames, page=path) if frames else {},
            num_clips=_NUM_CAPTIONED,
        )


def _timelines(predictions: Predictions) -> list[Timeline]:
    rows = zip(
        predictions.clips, predictions.frame_seconds, predictions.targets, predictions.outputs, strict=True
    )
    return [
        Timeline(clip.clip_id, seconds.numpy(), target.numpy(), output.argmax(dim=-1).numpy())
        for clip, seconds, target, output in islice(rows, _NUM_DRAWN)
    ]


def _read_frames(
    predictions: Predictions, frames: Callable[[Clip], np.ndarray], *, page: Path
) -> dict[str, np.ndarray]:
    """The frames of the clips on the page that can be read, by clip id."""
    found = {}
    for clip, seconds in zip(
        predictions.clips[:_NUM_CAPTIONED], predictions.frame_seconds[:_NUM_CAPTIONED], strict=True
    ):
        try:
            read = frames(clip)
            if len(read) != len(seconds):
                raise DecodeError(f"it has {len(read)} frames now, and its features are of {len(seconds)}")
            found[clip.clip_id] = read
        except (DecodeError, OSError) as error:
            log.warning("%s is drawn without the frames of %s: %s", page, clip.clip_id, error_text(error))
    return found
