"""Why features of others differ: each cause is found in features that were made with it."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.contract import Preprocessing
from pipeline.corpora.digits import write_video
from pipeline.deploy.end_to_end import clip_pixels, make_backbone
from pipeline.deploy.suspects import compare, find_form, suspects_in_arrays, suspects_in_pixels
from pipeline.errors import FeatureFileError
from pipeline.manifest import Clip
from tests.support.extraction import random_weights
from tests.support.features import make_contract

CPU = torch.device("cpu")
CLIP = Clip("walk", ("walk.mp4",), "train")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), dtype=np.uint8)
    frames = noise.repeat(8, axis=1).repeat(8, axis=2) // np.array([1, 2, 4], np.uint8)  # of an orange tint
    write_video(folder / "walk.mp4", frames, fps=10)
    return folder


CONTRACT = make_contract(
    tap="layer2",
    dtype="float32",
    preprocessing=Preprocessing(resize=48, crop=32),
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


def by_another_program(
    root: Path,
    *,
    bgr: bool = False,
    size: tuple[int, int] = (72, 48),
    mean: object = CONTRACT.mean,
    std: object = CONTRACT.std,
    scale: float = 255,
) -> np.ndarray:
    """layer2 (T, C, H, W) by torchvision and Pillow alone."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    network = resnet18(weights=None)
    network.load_state_dict(random_weights().state, strict=False)
    n = network.eval()
    trunk = torch.nn.Sequential(n.conv1, n.bn1, n.relu, n.maxpool, n.layer1, n.layer2)
    with av.open(root / "walk.mp4") as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    left, top = (size[0] - 32) // 2, (size[1] - 32) // 2
    images = [Image.fromarray(f).resize(size, Image.Resampling.BILINEAR) for f in frames]
    pixels = np.stack([np.asarray(i)[top : top + 32, left : left + 32] for i in images])
    x = torch.from_numpy(pixels[..., ::-1].copy() if bgr else pixels).permute(0, 3, 1, 2) / scale
    x = (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    with torch.inference_mode():
        maps: np.ndarray = trunk(x.float()).numpy()
        return maps


def ours(root: Path) -> np.ndarray:
    backbone = make_backbone(_contract(), random_weights(), device=CPU)
    return np.concatenate(
        [backbone(pixels)["layer2"].numpy() for pixels, _ in clip_pixels(CLIP, root=root, contract=CONTRACT)]
    )


def _contract() -> object:
    return CONTRACT.model_copy(update={"weights_sha256": random_weights().sha256})


PIXELS: dict[str, dict[str, object]] = {
    "channels are BGR": {"bgr": True},
    "no normalisation, pixels from 0 to 1": {"mean": [0.0] * 3, "std": [1.0] * 3},
    "no normalisation, pixels from 0 to 255": {"mean": [0.0] * 3, "std": [1.0] * 3, "scale": 1},
    "pixels from -1 to 1": {"mean": [0.5] * 3, "std": [0.5] * 3},
    "resized to the crop's size, whatever the shape of frames": {"size": (32, 32)},
    "resized so that the shorter side is the crop's": {"size": (48, 32)},
}


def test_features_of_another_program_that_do_the_same_are_equal(root: Path) -> None:
    mine, theirs = {"walk": ours(root)}, {"walk": by_another_program(root)}
    form = find_form(mine, theirs)
    assert (form.axes, form.pooling) == ("axes (T, C, H, W)", "maps as they are")
    assert compare(mine, theirs, form=form).is_within(0.005)


@pytest.mark.parametrize("cause", PIXELS)
def test_a_cause_in_the_pixels_is_the_likeliest_of_all(root: Path, cause: str) -> None:
    mine, theirs = {"walk": ours(root)}, {"walk": by_another_program(root, **PIXELS[cause])}  # type: ignore[arg-type]
    form = find_form(mine, theirs)
    asked = {"contract": _contract(), "weights": random_weights(), "root": root, "device": CPU}
    found = [
        *suspects_in_arrays(mine, theirs, form=form),
        *suspects_in_pixels([CLIP], theirs, form=form, **asked),
    ]
    best = max(found, key=lambda suspect: suspect.comparison.cosine)
    assert best.cause == cause
    assert best.comparison.distance < 0.01 < compare(mine, theirs, form=form).distance


MAPS = np.random.default_rng(0).standard_normal((25, 4, 3, 2)).astype(np.float32)
Arrays = tuple[np.ndarray, np.ndarray]  # ours, theirs
ARRAYS: dict[str, Arrays] = {
    "their frames are one later": (MAPS, np.concatenate([MAPS[:1], MAPS[:-1]])),
    "their frames are one earlier": (MAPS, MAPS[1:]),
    "they have each 3. frame": (MAPS, MAPS[::3]),
    "we have each 2. frame": (MAPS[::2], MAPS),
    "theirs are behind a ReLU": (MAPS, np.maximum(MAPS, 0)),
    "theirs are before a ReLU": (np.maximum(MAPS, 0), MAPS),
}


@pytest.mark.parametrize("cause", ARRAYS)
def test_a_cause_in_the_arrays_makes_them_equal(cause: str) -> None:
    mine, theirs = ARRAYS[cause]
    form = find_form({"a": mine}, {"a": theirs})
    found = suspects_in_arrays({"a": mine}, {"a": theirs}, form=form)
    best = max(found, key=lambda suspect: suspect.comparison.cosine)
    assert (best.cause, best.comparison.largest) == (cause, 0)


@pytest.mark.parametrize(
    ("change", "axes", "pooling"),
    [
        (lambda maps: maps.transpose(0, 2, 3, 1), "axes (T, H, W, C)", "maps as they are"),
        (lambda maps: maps.transpose(1, 0, 2, 3), "axes (C, T, H, W)", "maps as they are"),
        (lambda maps: maps.transpose(0, 1, 3, 2), "axes (T, C, W, H)", "maps as they are"),
        (lambda maps: maps.mean(axis=(2, 3)), "axes (T, D)", "mean over each map"),
        (lambda maps: maps.max(axis=(2, 3)).T, "axes (D, T)", "maximum of each map"),
    ],
)
def test_axes_and_pooling_are_found(
    change: Callable[[np.ndarray], np.ndarray], axes: str, pooling: str
) -> None:
    theirs = {"a": change(MAPS)}
    form = find_form({"a": MAPS}, theirs)
    assert (form.axes, form.pooling) == (axes, pooling)
    assert compare({"a": MAPS}, theirs, form=form).is_within(1e-6)


def test_shapes_that_nothing_makes_equal_are_named() -> None:
    with pytest.raises(FeatureFileError, match=r"\(25, 4, 3, 2\) here and \(25, 5\) there"):
        find_form({"a": MAPS}, {"a": np.ones((25, 5))})
