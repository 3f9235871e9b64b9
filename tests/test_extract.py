"""The engine, from real video to stored features, against the plain way."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.backbone import Backbone, Weights, preprocess
from pipeline.contract import REVISION, FeatureContract, Preprocessing, Sampling
from pipeline.errors import DecodeError
from pipeline.extract import ExtractConfig, Result, Target, plan, publish_view, run
from pipeline.frames import read_frames
from pipeline.manifest import Clip
from pipeline.store import Journal, Layout, open_view
from pipeline.weights import WeightsConfig, obtain_weights
from tests.media import write_image_folder, write_video

CPU = torch.device("cpu")
VIDEO = Path(__file__).parent / "data/bigbuckbunny.mp4"


@pytest.fixture(scope="module")
def weights() -> Weights:
    return obtain_weights(WeightsConfig(arch="resnet18", source="random:0"))


def targets_of(config: ExtractConfig, weights: Weights, backbone: Backbone) -> list[Target]:
    from stages.extract import make_targets

    return make_targets(config, weights, backbone)


def extract(
    clips: list[Clip], root: Path, weights: Weights, path: Path, **changes: object
) -> tuple[Result, Path]:
    """Plan, run and publish; the features' folder."""
    fields = {"taps": ["layer4"], "preprocessing": {"resize": 32, "crop": 32}, "batch_size": 4, **changes}
    config = ExtractConfig.model_validate(fields)
    backbone = Backbone(weights, taps=config.taps, device=CPU)
    targets = targets_of(config, weights, backbone)
    journal = Journal(path / "journal")
    todo = plan(clips, root=root, targets=targets, journal=journal, digests=journal.digest_cache())
    result = run(
        todo.to_extract,
        root=root,
        targets=targets,
        backbone=backbone,
        device=CPU,
        journal=journal,
        config=config,
    )
    publish_view(todo.keys, targets=targets, journal=journal, path=path / "features")
    return result, path / "features"


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[list[Clip], Path]:
    """Two videos, of 13 and 3 frames, and a folder of 6 images."""
    root = tmp_path / "corpus"
    write_video(root / "long.mp4", num_frames=13, size=(48, 64))
    write_video(root / "short.mp4", num_frames=3, size=(32, 32), first_index=40)
    write_image_folder(root / "images", num_images=6)
    names = {"long": "long.mp4", "short": "short.mp4", "images": "images"}
    return [Clip(clip_id=name, sources=(source,), split="train") for name, source in names.items()], root


def plain_features(source: Path, weights: Weights, **sampling: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, C, H, W) float16 and the times, frame by frame and without the engine."""
    backbone = Backbone(weights, taps=["layer4"], device=CPU)
    maps, times = [], []
    for batch in read_frames([source], sampling=Sampling(**sampling)):
        for pixels, seconds in zip(batch.pixels, batch.pts_seconds, strict=True):
            frame = preprocess(pixels[None], Preprocessing(resize=32, crop=32))
            maps.append(backbone(frame)["layer4"][0].half().numpy())
            times.append(seconds)
    return np.stack(maps), np.array(times)


def test_features_are_those_of_each_frame_alone(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    clips, root = corpus
    result, features = extract(clips, root, weights, tmp_path)
    assert (result.num_clips, result.num_frames, result.num_batches) == (3, 22, 6)
    with open_view(features / "layer4") as view:
        for clip in clips:
            maps, times = plain_features(root / clip.sources[0], weights)
            np.testing.assert_allclose(view.read(clip.clip_id), maps, rtol=2e-3, atol=2e-3)
            np.testing.assert_array_equal(view.frame_seconds(clip.clip_id), times)


def test_features_are_the_same_bits_whatever_the_order_the_neighbours_and_the_decoders(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    clips, root = corpus
    _, first = extract(clips, root, weights, tmp_path / "one")
    _, second = extract(clips[::-1], root, weights, tmp_path / "two", num_decoders=3)
    _, third = extract(clips[1:2], root, weights, tmp_path / "three")
    with open_view(first / "layer4") as one, open_view(second / "layer4") as two:
        for clip in clips:
            np.testing.assert_array_equal(one.read(clip.clip_id), two.read(clip.clip_id))
        with open_view(third / "layer4") as three:
            np.testing.assert_array_equal(one.read("short"), three.read("short"))


def test_several_taps_pooling_and_sampling_in_one_pass(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    clips, root = corpus
    _, features = extract(
        clips, root, weights, tmp_path, taps=["layer4", "layer2"], pooling="max", sampling={"every": 4}
    )
    maps, times = plain_features(root / "long.mp4", weights, every=4)
    with open_view(features / "layer4") as deep, open_view(features / "layer2") as shallow:
        assert deep.map_shape == (512, 1, 1)
        assert shallow.map_shape == (128, 1, 1)
        expected = maps.max(axis=(2, 3), keepdims=True)
        np.testing.assert_allclose(deep.read("long"), expected, rtol=2e-3, atol=2e-3)
        np.testing.assert_array_equal(shallow.frame_seconds("long"), times)


def test_two_clips_of_the_same_bytes_are_computed_once(weights: Weights, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=3, size=(32, 32))
    clips = [Clip(clip_id=name, sources=("a.mp4",), split="train") for name in ("one", "two")]
    result, features = extract(clips, tmp_path, weights, tmp_path)
    assert result.num_clips == 1
    with open_view(features / "layer4") as view:
        np.testing.assert_array_equal(view.read("one"), view.read("two"))


def test_an_empty_time_range_is_quarantined_and_the_rest_goes_on(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    clips, root = corpus
    empty = Clip(clip_id="empty", sources=("short.mp4",), split="train", start_seconds=99, end_seconds=100)
    result, features = extract([*clips, empty], root, weights, tmp_path)
    assert (result.num_clips, result.num_quarantined, result.failed) == (3, 1, {})
    assert "empty,short.mp4," in (features / "quarantine.csv").read_text()


def test_a_decoder_that_breaks_in_a_way_nobody_foresaw_stops_the_run_with_its_error(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("pipeline.extract.decode.read_frames", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        extract(*corpus, weights, tmp_path)


def test_frames_smaller_than_the_crop_are_a_reason_not_a_crash(weights: Weights, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=3, size=(32, 32))
    clips = [Clip(clip_id="a", sources=("a.mp4",), split="train")]
    preprocessing = {"resize": None, "crop": 64}
    result, features = extract(clips, tmp_path, weights, tmp_path, preprocessing=preprocessing)
    assert result.num_quarantined == 1
    with pytest.raises(DecodeError):
        preprocess(np.zeros((1, 32, 32, 3), np.uint8), Preprocessing(resize=None, crop=64))
    with open_view(features / "layer4") as view:
        assert len(view) == 0


# Mean and deviation of four channels of resnet18's layer4 (random:0) over three frames of real video.
GOLDEN_REVISION = 1
GOLDEN = np.array([[0.365597, 0.640537], [0.183566, 0.437553], [0.2443, 0.531754], [0.7333, 0.812913]])


def test_golden_features_move_only_with_the_revision(weights: Weights, tmp_path: Path) -> None:
    clips = [Clip(clip_id="bunny", sources=(VIDEO.name,), split="train")]
    preprocessing = {"resize": 256, "crop": 224}
    _, features = extract(
        clips, VIDEO.parent, weights, tmp_path, sampling={"count": 3}, preprocessing=preprocessing
    )
    with open_view(features / "layer4") as view:
        maps = view.read("bunny").astype(np.float64)[:, :4]  # (3, 4, 7, 7)
    found = np.stack([maps.mean(axis=(0, 2, 3)), maps.std(axis=(0, 2, 3))], axis=1)
    assert REVISION == GOLDEN_REVISION, "new revision: record the new values here"
    np.testing.assert_allclose(found, GOLDEN, rtol=2e-3, err_msg="values moved: raise contract.REVISION")


def test_the_contract_says_what_the_features_were_made_with(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    _, features = extract(*corpus, weights, tmp_path)
    with open_view(features / "layer4") as view:
        assert view.contract == FeatureContract(
            sampling=Sampling(),
            preprocessing=Preprocessing(resize=32, crop=32),
            mean=weights.mean,
            std=weights.std,
            arch="resnet18",
            weights_sha256=weights.sha256,
            tap="layer4",
        )
        assert isinstance(view.layout, Layout)
