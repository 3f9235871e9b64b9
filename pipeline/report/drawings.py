"""Drawings: pictures of some clips' answers, as PNG files that DVC shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.learn.comparison import FrameWeights
from pipeline.learn.metrics import Estimate
from pipeline.report.figures import save_figure


@dataclass(frozen=True)
class Timeline:
    """The class of each frame of a clip: the true one, and the model's."""

    clip_id: str
    frame_seconds: np.ndarray  # (T,) float64: time in the source
    actual: np.ndarray  # (T,) class numbers, negative where nothing is labelled
    predicted: np.ndarray  # (T,) class numbers


def draw_timelines(path: Path, timelines: Sequence[Timeline], *, classes: Sequence[str]) -> None:
    """A panel a clip: two bars along time in seconds, coloured by class, the actual above the predicted."""
    figure = Figure(figsize=(8, 0.9 + 0.7 * len(timelines)), layout="constrained")
    colours = _colours(len(classes))
    all_axes = figure.subplots(len(timelines), squeeze=False)[:, 0]
    for axes, timeline in zip(all_axes, timelines, strict=True):
        starts, widths = timeline.frame_seconds, _durations(timeline.frame_seconds)
        for height, numbers in ((1, timeline.actual), (0, timeline.predicted)):
            shown = numbers >= 0
            axes.barh(
                height,
                widths[shown],
                left=starts[shown],
                height=0.9,
                align="edge",
                color=colours[numbers[shown]],
            )
        axes.set_yticks([0.45, 1.45], ["predicted", "actual"], fontsize=7)
        axes.set_xlim(starts[0], starts[-1] + widths[-1])
        axes.set_title(timeline.clip_id, fontsize=8, loc="left")
        axes.tick_params(axis="x", labelsize=7)
    all_axes[-1].set_xlabel("seconds", fontsize=8)
    handles = [all_axes[0].barh(0, 0, color=colour) for colour in colours]
    figure.legend(handles, classes, loc="outside upper center", ncols=min(len(classes), 6), fontsize=8)
    save_figure(figure, path)


def draw_frame_weights(path: Path, clips: Sequence[FrameWeights]) -> None:
    """A panel a clip: a bar a frame, as high as its weight, along time in seconds."""
    figure = Figure(figsize=(8, 0.5 + 1.1 * len(clips)), layout="constrained")
    all_axes = figure.subplots(len(clips), squeeze=False)[:, 0]
    for axes, clip in zip(all_axes, clips, strict=True):
        axes.bar(clip.frame_seconds, clip.weights, width=0.9 * _durations(clip.frame_seconds), align="edge")
        axes.set_title(f"{clip.clip_id}: {clip.answer}", fontsize=8, loc="left")
        axes.set_ylabel("weight", fontsize=7)
        axes.tick_params(labelsize=7)
    all_axes[-1].set_xlabel("seconds", fontsize=8)
    save_figure(figure, path)


def draw_comparison(path: Path, models: Mapping[str, Mapping[str, Estimate]]) -> None:
    """A panel a metric: each model's value and 95 % interval.

    `models` are metrics by name, by model; all models have the metrics of the first.
    """
    names = list(next(iter(models.values())))
    width_of_models = 0.5 + 0.07 * max(map(len, models))
    figure = Figure(figsize=(width_of_models + 2 * len(names), 1 + 0.35 * len(models)), layout="constrained")
    all_axes = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    heights = range(len(models))
    for axes, name in zip(all_axes, names, strict=True):
        for height, metrics in zip(heights, models.values(), strict=True):
            estimate = metrics[name]
            if ends := estimate.interval:
                axes.plot(ends, [height, height], color="tab:grey", linewidth=3)
            axes.plot(estimate.value, height, "o", color="tab:blue")
        axes.set_title(name.replace("_", " "), fontsize=8)
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=4)  # as many numbers as have room
        axes.ticklabel_format(axis="x", scilimits=(-3, 4))
        axes.xaxis.get_offset_text().set_fontsize(7)
        axes.grid(axis="x", alpha=0.3)
    all_axes[0].set_yticks(heights, list(models))
    all_axes[0].set_ylim(len(models) - 0.5, -0.5)
    save_figure(figure, path)


def _durations(seconds: np.ndarray) -> np.ndarray:
    """How long each frame (T,) is shown; the last one as long as the one before, a single one a second."""
    if len(seconds) == 1:
        return np.ones(1)
    gaps = np.diff(seconds)
    return np.append(gaps, gaps[-1])


def _colours(num_classes: int) -> np.ndarray:
    from matplotlib import colormaps

    palette = colormaps["tab10" if num_classes <= 10 else "turbo"]
    positions = np.arange(num_classes) if num_classes <= 10 else np.linspace(0, 1, num_classes)
    return np.array([palette(position) for position in positions])
