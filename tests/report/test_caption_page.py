"""The page that shows where a model looked: its pixels say so."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.learn.decoding import Sentence
from pipeline.learn.tasks import Predictions
from pipeline.learn.tasks.captions import Caption
from pipeline.report.caption_page import _CELL, _PITCH, _mosaic, attention_maps, write_caption_page
from tests.support.toy import make_clip


def make_caption(attention: torch.Tensor | None) -> Caption:
    return Caption(
        "left, up",
        Sentence((5, 6, 7), -0.5, torch.empty(0)),
        ("left", ",", "up"),
        attention,
        torch.empty(0, 3),
    )


@pytest.mark.parametrize(
    ("scan", "num_steps", "place"),
    [
        ("locations", 6, lambda step: (step // 3, step % 3)),
        ("rows", 2, lambda step: (step, 0)),
        ("vertical_strips", 3, lambda step: (0, step)),
    ],
)
def test_each_step_stands_where_its_part_of_the_map_is(scan, num_steps, place):
    attention = torch.rand(3, 4, num_steps)
    maps = attention_maps(make_caption(attention), scan=scan, map_size=(2, 3))
    for step in range(num_steps):
        y, x = place(step)
        np.testing.assert_array_equal(maps[:, :, y, x], attention[:, :, step].numpy())


@pytest.mark.parametrize(("scan", "num_steps"), [("frames", 1), ("locations", 3), ("channels", 4)])
def test_steps_without_a_place_are_summed_over_the_frame(scan, num_steps):
    attention = torch.rand(3, 4, num_steps)
    maps = attention_maps(make_caption(attention), scan=scan, map_size=(2, 3))
    np.testing.assert_allclose(maps[:, :, 0, 0], attention.sum(dim=2).numpy(), rtol=1e-6)


def test_what_a_word_looks_at_is_bright_and_the_rest_of_its_row_is_dark():
    maps = np.zeros((2, 3, 2, 2))
    maps[0, 1, 1, 0] = 0.7  # the first word: frame 1, bottom left
    maps[1, 2] = 0.25
    page = _mosaic(maps, num_frames=3, frames=np.full((3, 64, 80, 3), 200, np.uint8))
    assert page.shape == (3 * _PITCH, 3 * _PITCH, 3)
    light = page.sum(axis=2)

    def cell(row: int, column: int) -> np.ndarray:
        top, left = row * _PITCH, column * _PITCH
        return light[top : top + _CELL, left : left + _CELL]

    half = _CELL // 2
    lit = cell(1, 1)[half:, :half]
    assert (lit == lit.max()).all()
    dark = [cell(1, 0), cell(1, 2), cell(1, 1)[:half], cell(1, 1)[:, half:], cell(2, 0), cell(2, 1)]
    assert max(part.max() for part in dark) < lit.min()
    assert (cell(2, 2) == lit.max()).all()  # the most of a word is as bright as of another
    np.testing.assert_allclose(cell(0, 0), 3 * 200 / 255)


@pytest.mark.parametrize("attention", [torch.rand(3, 4, 1), None])
@pytest.mark.parametrize("with_frames", [True, False])
def test_a_page_is_a_picture_and_the_same_bytes_again(tmp_path: Path, attention, with_frames):
    clips = (make_clip("a", captions=("left, up",)), make_clip("b", captions=("up", "right")))
    captions = (
        make_caption(attention),
        dataclasses.replace(make_caption(attention), text="", words=("left", ",", "up")),
    )
    predictions = Predictions(clips, captions, (torch.empty(0),) * 2, (torch.arange(4) / 10,) * 2)
    frames = {"a": np.zeros((4, 16, 16, 3), np.uint8)} if with_frames else {}
    for name in ("one.png", "two.png"):
        write_caption_page(tmp_path / name, predictions, scan="frames", map_size=(2, 3), frames=frames)
    data = (tmp_path / "one.png").read_bytes()
    assert data == (tmp_path / "two.png").read_bytes()
    width, height = Image.open(io.BytesIO(data)).size
    assert width > 4 * _CELL
    assert height > 2 * (1 if attention is None else 4) * _CELL
