"""Plots of an evaluation: the tables that DVC draws, and pictures of some clips' answers."""

from itertools import islice
from pathlib import Path

from pipeline.learn.comparison import Evaluation
from pipeline.learn.tasks import FrameLabels, Predictions
from pipeline.report.drawings import Timeline, draw_comparison, draw_frame_weights, draw_timelines
from pipeline.report.tables import write_tables

_NUM_DRAWN = 8  # clips in a picture


def write_plots(folder: Path, evaluation: Evaluation) -> None:
    """Write the tables of the model's answers, and below images/ the pictures of its task and model."""
    task, predictions, images = evaluation.checkpoint.task, evaluation.answers, folder / "images"
    write_tables(folder, evaluation.predictions)
    metrics = {evaluation.labels[name]: score.metrics for name, score in evaluation.scores.items()}
    draw_comparison(images / "comparison.png", metrics)
    if isinstance(task, FrameLabels):
        draw_timelines(images / "timelines.png", _timelines(task, predictions), classes=task.classes)
    if evaluation.frame_weights:
        draw_frame_weights(images / "attention.png", evaluation.frame_weights[:_NUM_DRAWN])


def _timelines(task: FrameLabels, predictions: Predictions) -> list[Timeline]:
    rows = zip(
        predictions.clips, predictions.frame_seconds, predictions.targets, predictions.outputs, strict=True
    )
    return [
        Timeline(clip.clip_id, seconds.numpy(), target.numpy(), task.frame_classes(output, seconds))
        for clip, seconds, target, output in islice(rows, _NUM_DRAWN)
    ]
