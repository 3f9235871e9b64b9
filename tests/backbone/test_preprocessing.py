import hashlib
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.backbone import preprocess
from pipeline.backbone.resize import Window, resize
from pipeline.contract import Interpolation, Preprocessing
from tests.support.little_memory import little_memory

PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def noise(num_frames: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * 10_000 + width)
    return rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


def with_pillow(pixels: np.ndarray, *, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """Horizontal, then vertical, as all Pillows before 13; that one turns it round where it is cheaper."""
    frames = []
    for frame in pixels:
        wide = Image.fromarray(frame).resize((size[1], frame.shape[0]), PIL_FILTERS[interpolation])
        frames.append(np.asarray(wide.resize((size[1], size[0]), PIL_FILTERS[interpolation])))
    return np.stack(frames)


def preprocessed(pixels: np.ndarray, options: Preprocessing) -> torch.Tensor:
    return preprocess(torch.from_numpy(pixels), options)


def as_frames(pixels: torch.Tensor) -> np.ndarray:
    return pixels.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((720, 1280), (256, 455)),
        ((1280, 720), (455, 256)),  # portrait
        ((480, 640), (256, 341)),
        ((97, 131), (64, 47)),
        ((131, 97), (131, 96)),
        ((333, 77), (301, 69)),
    ],
)
def test_shrinking_equals_pillow_to_one_level(
    source: tuple[int, int], target: tuple[int, int], interpolation: str
) -> None:
    pixels = noise(2, *source)
    options = Preprocessing.model_validate({"resize": target, "crop": target, "interpolation": interpolation})
    ours = as_frames(preprocessed(pixels, options)).astype(int)
    pillows = with_pillow(pixels, size=target, interpolation=interpolation)
    assert np.abs(ours - pillows).max() <= 1
    assert (ours != pillows).mean() < 0.03


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    target=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
def test_any_resize_equals_pillow_to_two_levels(
    height: int, width: int, target: tuple[int, int], interpolation: str
) -> None:
    pixels = noise(1, height, width)
    options = Preprocessing.model_validate({"resize": target, "crop": target, "interpolation": interpolation})
    ours = as_frames(preprocessed(pixels, options)).astype(int)
    assert np.abs(ours - with_pillow(pixels, size=target, interpolation=interpolation)).max() <= 2


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    resize=st.integers(8, 40),
    crop=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_sizes_and_crop_positions_are_torchvisions(
    height: int, width: int, resize: int, crop: tuple[int, int]
) -> None:
    from torchvision.transforms import CenterCrop, Resize

    if max(height, width) > 20 * min(height, width):
        width = height
    pixels = noise(1, height, width)
    ours = as_frames(preprocessed(pixels, Preprocessing(resize=resize, crop=crop)))[0].astype(int)
    resized = Resize(resize)(Image.fromarray(pixels[0]))
    again = with_pillow(pixels, size=(resized.height, resized.width), interpolation="bilinear")[0]
    expected = np.asarray(CenterCrop(list(crop))(Image.fromarray(again)))
    assert ours.shape == expected.shape == (*crop, 3)
    assert np.abs(ours - expected).max() <= 2


def test_a_shorter_side_that_fits_is_left_as_it_is() -> None:
    pixels = noise(2, 32, 57)
    ours = as_frames(preprocessed(pixels, Preprocessing(resize=32, crop=(32, 31))))
    np.testing.assert_array_equal(ours, pixels[:, :, 13:44])


def test_without_resize_frames_are_only_cropped() -> None:
    pixels = noise(3, 33, 48)
    ours = as_frames(preprocessed(pixels, Preprocessing(resize=None, crop=(30, 40))))
    np.testing.assert_array_equal(ours, pixels[:, 2:32, 4:44])  # round(1.5) is 2, as in torchvision


def test_frames_smaller_than_the_crop_are_refused() -> None:
    with pytest.raises(ValueError, match="a frame of 300 x 40 pixels is smaller than the crop of 64 x 64"):
        preprocessed(noise(1, 40, 300), Preprocessing(resize=None, crop=64))


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 200), st.integers(1, 200)),
    target=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    interpolation=st.sampled_from(get_args(Interpolation)),
    data=st.data(),
)
def test_resizing_for_gpus_has_the_bits_of_torchs_own_for_cpus(
    source: tuple[int, int], target: tuple[int, int], interpolation: Interpolation, data: st.DataObject
) -> None:
    height, width = (data.draw(st.integers(1, length)) for length in target)
    top, left = data.draw(st.integers(0, target[0] - height)), data.draw(st.integers(0, target[1] - width))
    window = Window(top, left, height, width)
    images = torch.from_numpy(noise(2, *source)).permute(0, 3, 1, 2)
    options = {"size": target, "window": window, "interpolation": interpolation}
    assert torch.equal(resize(images, **options, by_products=True), resize(images, **options))


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("length", [1_000, 30_000])
def test_resizing_for_gpus_is_exact_for_images_of_any_size(length: int, interpolation: Interpolation) -> None:
    images = torch.from_numpy(np.maximum(noise(1, 3, length), 250)).permute(0, 3, 1, 2)
    options = {"size": (3, 8), "window": Window(0, 0, 3, 8), "interpolation": interpolation}
    assert torch.equal(resize(images, **options, by_products=True), resize(images, **options))


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("size", [(720, 1280), (272, 640), (97, 131), (2160, 3840)])
def test_frames_are_the_same_bits_on_a_gpu(size: tuple[int, int], interpolation: Interpolation) -> None:
    pixels = torch.from_numpy(noise(5, *size))
    options = Preprocessing(resize=256, crop=224, interpolation=interpolation)
    assert torch.equal(preprocess(pixels.cuda(), options).cpu(), preprocess(pixels, options))


def test_frames_are_independent_of_each_other() -> None:
    pixels = noise(4, 60, 80)
    options = Preprocessing(resize=40, crop=32)
    together = preprocessed(pixels, options)
    alone = [preprocessed(pixels[i : i + 1], options)[0] for i in range(4)]
    assert torch.equal(together, torch.stack(alone))


def test_strided_frames_are_accepted() -> None:
    pixels = noise(4, 60, 80)
    options = Preprocessing(resize=40, crop=32)
    expected = preprocessed(pixels[::2, :, 10:].copy(), options)
    assert torch.equal(preprocessed(pixels[::2, :, 10:], options), expected)


def test_no_frames_give_no_frames() -> None:
    assert preprocessed(noise(0, 60, 80), Preprocessing(resize=40, crop=32)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize(
    ("interpolation", "digest"),
    [("bilinear", "fcc5d02bc8234c81"), ("bicubic", "9155dc26b6eb32dd")],
)
def test_values_are_those_of_this_revision(interpolation: str, digest: str) -> None:
    """Integer arithmetic: equal bits on every CPU. If this fails, raise `contract.REVISION`."""
    y, x, c = np.mgrid[0:90, 0:120, 0:3]
    pixels = ((x * x + 3 * y * (c + 1) + x * y) % 256).astype(np.uint8)[None]
    options = Preprocessing.model_validate({"resize": 71, "crop": 64, "interpolation": interpolation})
    assert hashlib.sha256(as_frames(preprocessed(pixels, options)).tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("num_frames", [1, 5, 16])
def test_frames_that_become_large_are_resized_few_at_a_time_to_the_same_bits(num_frames: int) -> None:
    """16 frames of 8 x 2400 would be 256 x 76800 pixels each, 944 MB, of which 224 x 224 are kept."""
    pixels = noise(num_frames, 8, 2400)
    preprocessed(pixels[:1], Preprocessing())  # torch's threads and their stacks
    with little_memory():
        frames = preprocessed(pixels, Preprocessing())
    assert frames.shape == (num_frames, 3, 224, 224)
    assert frames.is_contiguous(memory_format=torch.channels_last)
    for number in range(num_frames):
        assert torch.equal(frames[number], preprocessed(pixels[number : number + 1], Preprocessing())[0])
