from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pipeline.learn.comparison import FrameWeights
from pipeline.learn.metrics import Estimate
from pipeline.report import drawings
from pipeline.report.drawings import Timeline, draw_comparison, draw_frame_weights, draw_timelines

SECONDS = np.arange(6) / 10
BLUE, ORANGE, GREEN = (31, 119, 180), (255, 127, 14), (44, 160, 44)


def num_pixels(path: Path, colour: tuple[int, int, int]) -> int:
    with Image.open(path) as image:
        return int((np.asarray(image.convert("RGB")) == colour).all(axis=2).sum())


def test_a_timeline_has_each_class_for_as_long_as_it_is_shown(tmp_path: Path) -> None:
    def draw(actual: list[int], predicted: list[int]) -> tuple[int, ...]:
        timeline = Timeline("clip", SECONDS, np.array(actual), np.array(predicted))
        draw_timelines(tmp_path / "t.png", [timeline], classes=["a", "b", "c"])
        return tuple(num_pixels(tmp_path / "t.png", colour) for colour in (BLUE, ORANGE, GREEN))

    legend = draw([-100] * 6, [2] * 6)[0]
    once = draw([0, -100, -100, -100, -100, -100], [2] * 6)[0] - legend
    thrice = draw([0, 0, 0, -100, -100, -100], [2] * 6)[0] - legend
    assert once > 100
    assert abs(thrice - 3 * once) < 0.1 * thrice
    blue, orange, green = draw([0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1])
    assert abs(blue - orange) < 0.1 * blue
    assert green < 0.1 * blue


def test_attention_is_a_bar_a_frame_as_high_as_its_weight(tmp_path: Path) -> None:
    def draw(weights: list[float]) -> np.ndarray:
        """Heights of the bars, in pixels."""
        draw_frame_weights(tmp_path / "a.png", [FrameWeights("clip", SECONDS, np.array(weights), "left")])
        with Image.open(tmp_path / "a.png") as image:
            blue = (np.asarray(image.convert("RGB")) == BLUE).all(axis=2).sum(axis=0)  # (W,)
        edges = np.flatnonzero(np.diff((blue > 0).astype(int)))
        return np.array([blue[first + 1 : last + 1].max() for first, last in edges.reshape(-1, 2).tolist()])

    heights = draw([0.1, 0.2, 0.3, 0.2, 0.1, 0.1])
    np.testing.assert_allclose(heights / heights.sum(), [0.1, 0.2, 0.3, 0.2, 0.1, 0.1], atol=0.03)


def test_a_clip_of_one_frame_can_be_drawn(tmp_path: Path) -> None:
    draw_frame_weights(
        tmp_path / "a.png", [FrameWeights("image", np.zeros(1), np.ones(1, np.float32), "seven")]
    )
    draw_timelines(
        tmp_path / "t.png", [Timeline("image", np.zeros(1), np.array([0]), np.array([1]))], classes=["a", "b"]
    )
    assert num_pixels(tmp_path / "a.png", BLUE) > 100
    assert num_pixels(tmp_path / "t.png", ORANGE) > 100


def test_a_comparison_has_every_models_value(tmp_path: Path) -> None:
    models = {name: {"accuracy": Estimate(0.5, 0.4, 0.6)} for name in ("one", "two", "three")}
    draw_comparison(tmp_path / "c.png", models)
    three = num_pixels(tmp_path / "c.png", BLUE)
    draw_comparison(tmp_path / "c.png", dict(list(models.items())[:1]))
    assert abs(three - 3 * num_pixels(tmp_path / "c.png", BLUE)) < 0.1 * three


@pytest.mark.parametrize(
    "metrics",
    [
        {"accuracy": (0.965, 0.03)},
        {"loss": (0.3622, 0.05), "accuracy": (0.0005, 0.0004), "macro_f1": (0.9651, 0.00003)},
        {
            **{"mean_absolute_error": (123456.789, 50_000), "rmse": (1.2e-6, 3e-8), "r2": (-2345.6, 123)},
            **{"perplexity": (1.3e9, 2e8), "exact_match": (0, 0), "teacher_forced_accuracy": (100.5, 0.01)},
        },
    ],
)
@pytest.mark.parametrize("name", ["LSTM", "a transformer of four layers, frames shuffled"])
def test_numbers_and_names_of_a_comparison_do_not_overlap(tmp_path: Path, monkeypatch, metrics, name) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(drawings, "save_figure", lambda figure, _path: drawn.append(figure))
    estimates = {
        metric: Estimate(value, value - half, value + half) for metric, (value, half) in metrics.items()
    }
    draw_comparison(tmp_path / "c.png", {name: estimates, "mean-pool + linear": estimates})
    (figure,) = drawn
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        boxes = [
            label.get_window_extent()
            for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
            if low <= place <= high
        ]
        assert boxes
        assert all(left.x1 + 2 < right.x0 for left, right in pairwise(boxes))
    titles = [axes.title.get_window_extent() for axes in figure.axes]
    assert all(left.x1 + 2 < right.x0 for left, right in pairwise(titles))
    assert figure.axes[0].get_window_extent().width > 100
    assert all(label.get_window_extent().x0 >= 0 for label in figure.axes[0].get_yticklabels())
