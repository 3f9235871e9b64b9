"""Views: several crops of each frame, decoded once, with features of their own."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms import functional

from pipeline.backbone import Backbone, preprocess
from pipeline.contract import CENTER, FrameView, Preprocessing
from pipeline.extraction import decode, make_plan, make_targets
from pipeline.frames import read_frames
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.store import Journal, open_view
from pipeline.store.upkeep.care import journal_checks, verify, view_checks
from stages.project.asked import fitting
from tests.support.extraction import extract, make_backbone, random_weights, settings_of, sources_of
from tests.support.features import make_contract
from tests.support.media import write_image_folder, write_video

CPU = torch.device("cpu")
VIEWS = ["center", "flip", "corners", {"scale": 0.5, "flip": True}]
NAMES = ["layer2", "layer2@flip", "layer2@top_left", "layer2@top_right", "layer2@bottom_left"]
NAMES += ["layer2@bottom_right", "layer2@scale0.5-flip"]
PREPROCESSING = {"resize": 40, "crop": 32}


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[list[Clip], Path]:
    """A video of 5 frames and a folder of 3 images."""
    root = tmp_path / "corpus"
    write_video(root / "video.mp4", num_frames=5, size=(48, 64))
    write_image_folder(root / "images", num_images=3)
    sources = {"video": "video.mp4", "images": "images"}
    return [Clip(clip_id=name, sources=(source,), split="train") for name, source in sources.items()], root


def by_hand(pixels: np.ndarray, view: FrameView) -> torch.Tensor:
    """(T, H, W, 3) -> (T, 3, 32, 32): a resize of the whole frame, then torchvision's crops and flip."""
    side = round(40 / view.scale)
    size = (side, int(side * pixels.shape[2] / pixels.shape[1]))
    x = preprocess(torch.from_numpy(pixels), Preprocessing(resize=size, crop=size))
    corners = ("top_left", "top_right", "bottom_left", "bottom_right", None)
    x = functional.five_crop(x, [32, 32])[corners.index(view.corner)]
    return functional.hflip(x) if view.flip else x


def test_a_view_shows_what_torchvisions_crops_and_flip_show() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 45, 60, 3), dtype=np.uint8)
    for view in ExtractConfig(views=VIEWS).views:
        options = Preprocessing(**PREPROCESSING)
        assert torch.equal(preprocess(torch.from_numpy(pixels), options, view), by_hand(pixels, view)), (
            view.name
        )


def test_each_view_has_the_features_of_its_crop_from_one_decoding(
    corpus: tuple[list[Clip], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[Path] = []

    def counting(paths: list[Path], **options: object) -> object:
        decoded.extend(paths)
        return read_frames(paths, **options)

    monkeypatch.setattr(decode, "read_frames", counting)
    clips, root = corpus
    result, features = extract(
        clips, root, random_weights(), tmp_path, taps=["layer2"], views=VIEWS, preprocessing=PREPROCESSING
    )
    assert sorted(decoded) == [root / "images", root / "video.mp4"]
    assert sorted(path.name for path in features.iterdir() if path.is_dir()) == sorted(NAMES)
    assert (result.num_clips, result.num_frames) == (2, 7 * 8)
    assert not verify([*journal_checks(tmp_path / "journal"), *view_checks(features)])
    backbone = Backbone(random_weights(), taps=["layer2"], device=CPU)
    (batch,) = read_frames([root / "video.mp4"], sampling=ExtractConfig().sampling)
    for name in NAMES:
        with open_view(features / name) as view:
            assert view.contract.name == name
            maps = backbone(by_hand(batch.pixels, view.contract.view))["layer2"]
            np.testing.assert_allclose(view.read("video"), maps.numpy(), rtol=2e-3, atol=2e-3)
            np.testing.assert_array_equal(view.frame_seconds("video"), batch.frame_seconds)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_added_view_computes_itself_alone_and_leaves_the_features_of_others_as_they_are(
    corpus: tuple[list[Clip], Path], tmp_path: Path
) -> None:
    weights, fields = random_weights(), {"taps": ["layer2"], "preprocessing": PREPROCESSING}
    _, features = extract(*corpus, weights, tmp_path, **fields)
    before = files_of(features / "layer2")
    config, _ = settings_of({**fields, "views": ["center", "flip"]})
    targets = make_targets(config, weights, make_backbone(weights, config))
    journal = Journal(tmp_path / "journal")
    sources = sources_of(corpus[0], root=corpus[1], digests=journal.digest_cache())
    plan = make_plan(corpus[0], sources=sources, targets=targets, journal=journal)
    assert {clip.reason for clip in plan.to_extract} == {"view added (layer2@flip)"}
    assert {clip.targets for clip in plan.to_extract} == {("layer2@flip",)}
    result, _ = extract(*corpus, weights, tmp_path, **fields, views=["center", "flip"])
    assert (result.num_clips, result.num_frames) == (2, 8)
    assert files_of(features / "layer2") == before
    extract(*corpus, weights, tmp_path / "alone", **fields, views=["center", "flip"])
    with (
        open_view(features / "layer2@flip") as one,
        open_view(tmp_path / "alone/features/layer2@flip") as two,
    ):
        np.testing.assert_array_equal(one.read("video"), two.read("video"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": ["flip"]}, "views lack center"),
        ({"views": ["center", "flip", "flip"]}, "'flip' is there several times"),
        ({"views": ["corners", "center", "top_left"]}, "'top_left' is there several times"),
        ({"views": []}, "name at least one view"),
        ({"views": ["center", "left"]}, "none of center, flip, top_left"),
        (
            {"views": ["center", {"scale": 0.5}], "preprocessing": {"resize": None, "crop": 32}},
            "needs preprocessing.resize",
        ),
    ],
)
def test_views_that_cannot_be_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ExtractConfig.model_validate(fields)


def test_garbage_collection_keeps_the_views_that_a_project_asks_for() -> None:
    fits = fitting(b"extract: {taps: [layer4], views: [center, corners, {scale: 0.8}]}")
    assert all(fits(make_contract(view=view)) for view in ("center", "top_left", "scale0.8"))
    assert not fits(make_contract(view="flip"))
    older = fitting(b"extract: {taps: [layer4]}")
    assert older(make_contract(view="flip"))
    assert not fitting(b"extract: {taps: [layer4]}", with_defaults=True)(make_contract(view="flip"))
    assert make_contract().view == CENTER
    windows = make_contract(windows={"frames": 4, "stride": 2})
    assert fitting(b"extract: {windows: {frames: 4, stride: 2}}")(windows)
    assert not fitting(b"extract: {windows: {frames: 4, stride: 1}}")(windows)
    assert not fitting(b"extract: {taps: [layer4]}", with_defaults=True)(windows)
