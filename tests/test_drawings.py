from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.drawings import AttentionBars, Timeline, draw_attention, draw_comparison, draw_timelines
from pipeline.metrics import Estimate

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
        draw_attention(tmp_path / "a.png", [AttentionBars("clip", SECONDS, np.array(weights), "left")])
        with Image.open(tmp_path / "a.png") as image:
            blue = (np.asarray(image.convert("RGB")) == BLUE).all(axis=2).sum(axis=0)  # (W,)
        edges = np.flatnonzero(np.diff((blue > 0).astype(int)))
        return np.array([blue[first + 1 : last + 1].max() for first, last in edges.reshape(-1, 2).tolist()])

    heights = draw([0.1, 0.2, 0.3, 0.2, 0.1, 0.1])
    np.testing.assert_allclose(heights / heights.sum(), [0.1, 0.2, 0.3, 0.2, 0.1, 0.1], atol=0.03)


def test_a_clip_of_one_frame_can_be_drawn(tmp_path: Path) -> None:
    draw_attention(tmp_path / "a.png", [AttentionBars("image", np.zeros(1), np.ones(1, np.float32), "seven")])
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
