"""The caption page: some clips' frames and references, the model's words, and where it looked for each."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pipeline.learn.tasks import Predictions
from pipeline.learn.tasks.captions import Caption
from pipeline.learn.vocabulary import measured_words
from pipeline.report.figures import DOTS_PER_INCH, save_figure
from pipeline.settings.model import SCANS

_CELL, _GAP = 48, 2  # pixels of a frame on the page, and between two
_PITCH = _CELL + _GAP
_MARGIN_INCHES = 0.9
_MIN_WIDTH_INCHES = 6


def write_caption_page(
    path: Path,
    predictions: Predictions,
    *,
    scan: str,
    map_size: tuple[int, int],
    frames: Mapping[str, np.ndarray],
    num_clips: int = 6,
) -> None:
    """Write a PNG of the first clips: a row of frames, and below it for each word a row with its attention.

    `scan` and `map_size` (height, width) of the model tell where steps are in a frame. `frames` are
    (T, H, W, 3) uint8 by clip id; a clip without them is drawn black.
    """
    rows = list(zip(predictions.clips, predictions.outputs, predictions.frame_seconds, strict=True))[
        :num_clips
    ]
    pages = []
    for clip, caption, seconds in rows:
        maps = attention_maps(caption, scan=scan, map_size=map_size)
        pages.append(_mosaic(maps, num_frames=len(seconds), frames=frames.get(clip.clip_id)))
    heights = [len(page) / DOTS_PER_INCH + _MARGIN_INCHES for page in pages]
    width = max(page.shape[1] for page in pages) / DOTS_PER_INCH + 2 * _MARGIN_INCHES
    width = max(width, _MIN_WIDTH_INCHES)  # room for a sentence over a single frame
    figure = Figure((width, sum(heights)), layout="constrained")
    grid = figure.subplots(len(pages), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, page, (clip, caption, seconds) in zip(grid, pages, rows, strict=True):
        axes.imshow(page, interpolation="nearest")
        words = list(caption.words) if caption.attention is not None else []
        _label(axes, words=words, seconds=seconds.numpy())
        right = measured_words(caption.text) in map(measured_words, clip.captions)
        axes.set_title(
            f"{clip.clip_id}: {' | '.join(clip.captions)}\nsaid: {caption.text}",
            loc="left",
            fontsize=9,
            wrap=True,
            color="green" if right else "firebrick",
        )
    save_figure(figure, path)


def attention_maps(caption: Caption, *, scan: str, map_size: tuple[int, int]) -> np.ndarray:
    """A caption's attention as maps (S, T, h, w) float32, for each word and frame.

    `scan` and `map_size` (height, width) tell where a frame's steps are in it. Maps are 1 x 1 where steps
    have no place; a model without attention has none, (0, 0, 1, 1).
    """
    if caption.attention is None:
        return np.zeros((0, 0, 1, 1))
    attention: np.ndarray = caption.attention.numpy()  # (S, T, P)
    num_steps = attention.shape[2]
    shape = SCANS[scan].grid(num_steps, map_size=map_size)
    if shape == (1, 1):
        attention = attention.sum(axis=2)
    return attention.reshape(*attention.shape[:2], *shape)


def _mosaic(maps: np.ndarray, *, num_frames: int, frames: np.ndarray | None) -> np.ndarray:
    """The frames side by side, and below them a row a word: the frames again, bright where it attends."""
    cells = np.zeros((num_frames, _CELL, _CELL, 3))
    if frames is not None:
        images = (Image.fromarray(frame).resize((_CELL, _CELL)) for frame in frames[:num_frames])
        cells = np.stack([np.asarray(image) for image in images]) / 255  # (T, cell, cell, 3)
    rows = [cells]
    for word in maps:
        bright = word / max(word.max(), 1e-9)  # (T, h, w), at most 1
        heat = [
            np.asarray(Image.fromarray(frame).resize((_CELL, _CELL), Image.Resampling.NEAREST))
            for frame in bright
        ]
        rows.append(0.4 * cells + 0.6 * colormaps["inferno"](np.stack(heat))[..., :3])
    gaps = ((0, 0), (0, _GAP), (0, _GAP), (0, 0))
    padded = [
        np.pad(row, gaps, constant_values=1.0) for row in rows
    ]  # (T, cell + gap, cell + gap, 3) of white
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded])


def _label(axes: Axes, *, words: list[str], seconds: np.ndarray) -> None:
    axes.set_xticks((np.arange(len(seconds)) + 0.5) * _PITCH, [f"{time:.2f}" for time in seconds], fontsize=6)
    axes.set_yticks((np.arange(len(words) + 1) + 0.5) * _PITCH, ["frames", *words], fontsize=8)
    axes.set_xlabel("time, s", fontsize=6)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
