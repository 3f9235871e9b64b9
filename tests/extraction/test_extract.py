"""The engine, from real video to stored features, against the plain way."""

import contextlib
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.backbone import Backbone, Weights, preprocess
from pipeline.contract import REVISION, FeatureContract, Preprocessing, Sampling
from pipeline.extraction import compute_clips, make_plan, make_targets
from pipeline.frames import read_frames
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.store import Journal, Layout, open_view, stored_keys
from tests.support.extraction import extract, make_backbone, random_weights, settings_of, sources_of
from tests.support.little_memory import little_memory
from tests.support.media import write_image, write_image_folder, write_video

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
VIDEO = Path(__file__).parents[1] / "data/bigbuckbunny.mp4"


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights()


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[list[Clip], Path]:
    """Two videos, of 13 and 3 frames, and a folder of 6 images."""
    root = tmp_path / "corpus"
    write_video(root / "long.mp4", num_frames=13, size=(48, 64))
    write_video(root / "short.mp4", num_frames=3, size=(32, 32), first_index=40)
    write_image_folder(root / "images", num_images=6)
    names = {"long": "long.mp4", "short": "short.mp4", "images": "images"}
    return [Clip(clip_id=name, sources=(source,), split="train") for name, source in names.items()], root


@pytest.mark.parametrize("damage", [False, True])
def test_nothing_is_kept_of_a_clip_whose_source_is_replaced_before_it_is_decoded(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path, damage: bool
) -> None:
    clips, root = corpus
    config, machine = settings_of({"preprocessing": {"resize": 32, "crop": 32}, "device": "cpu"})
    backbone = make_backbone(weights, config, device="cpu")
    targets = make_targets(config, weights, backbone)
    journal = Journal(tmp_path / "journal")
    digests = journal.digest_cache()
    todo = make_plan(
        clips, sources=sources_of(clips, root=root, digests=digests), targets=targets, journal=journal
    )
    video = (root / "short.mp4").read_bytes()
    write_video(root / "short.mp4", num_frames=4, size=(32, 32), first_index=80)
    write_image(root / "images/9.png", index=9)
    if damage:
        (root / "short.mp4").write_bytes(video[: len(video) // 2])
    result = compute_clips(
        todo.to_extract,
        root=root,
        targets=targets,
        backbone=backbone,
        journal=journal,
        config=config,
        machine=machine,
        digests=digests,
    )
    assert result.num_clips == 1
    assert result.failed == {
        name: f"{source} changed before it was decoded to the end."
        for name, source in (("short", "short.mp4"), ("images", "images"))
    }
    assert not journal.quarantined(targets[0].contract.forward_digest())
    (target,) = targets
    assert stored_keys(journal.records(target.contract, target.layout).values()) == {todo.keys["long"]}


def plain_features(source: Path, weights: Weights, **sampling: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, C, H, W) float16 and the times, frame by frame and without the engine."""
    backbone = Backbone(weights, taps=["layer4"], device=CPU)
    maps, times = [], []
    for batch in read_frames([source], sampling=Sampling(**sampling)):
        for pixels, seconds in zip(batch.pixels, batch.frame_seconds, strict=True):
            frame = preprocess(torch.from_numpy(pixels[None]), Preprocessing(resize=32, crop=32))
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
    assert_same_bits(*corpus, weights, tmp_path)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_features_are_the_same_bits_whatever_their_neighbours_and_close_to_the_eager_ones(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    config = {
        "taps": ["layer1"],
        "backend": "inductor",
        "preprocessing": {"resize": 256, "crop": 224},
    }
    backbone = make_backbone(weights, ExtractConfig.model_validate(config))  # compiled once
    compiled = assert_same_bits(*corpus, weights, tmp_path, backbone=backbone, **config)
    _, eager = extract(*corpus, weights, tmp_path / "eager", **{**config, "backend": "eager"})
    with open_view(compiled / "layer1") as one, open_view(eager / "layer1") as two:
        assert one.contract.differences(two.contract) == {"backend": ("inductor", "eager")}
        np.testing.assert_allclose(one.read("long"), two.read("long"), rtol=2e-3, atol=2e-3)


def assert_same_bits(clips: list[Clip], root: Path, weights: Weights, path: Path, **changes: object) -> Path:
    """Extract in several ways, which must give the same; the features."""
    _, first = extract(clips, root, weights, path / "one", **changes)
    _, second = extract(clips[::-1], root, weights, path / "two", num_decoders=3, **changes)
    extract(clips[1:2], root, weights, path / "three", **changes)
    resumed, third = extract(clips, root, weights, path / "three", **changes)
    assert resumed.num_clips == len(clips) - 1
    tap = next(path.name for path in first.iterdir() if path.is_dir())
    with open_view(first / tap) as one, open_view(second / tap) as two, open_view(third / tap) as three:
        for clip in clips:
            maps = one.read(clip.clip_id)
            np.testing.assert_array_equal(two.read(clip.clip_id), maps)
            np.testing.assert_array_equal(three.read(clip.clip_id), maps)
    return first


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("float16", 5e-3)])
def test_on_a_gpu_features_are_the_same_bits_whatever_their_neighbours_and_close_to_the_cpus(
    precision: str,
    backend: str,
    tolerance: float,
    corpus: tuple[list[Clip], Path],
    weights: Weights,
    tmp_path: Path,
) -> None:
    config = {"device": "cuda", "precision": precision, "backend": backend}
    on_gpu = assert_same_bits(*corpus, weights, tmp_path, **config)
    _, on_cpu = extract(*corpus, weights, tmp_path / "cpu")
    with open_view(on_gpu / "layer4") as one, open_view(on_cpu / "layer4") as two:
        for clip_id in two.clip_ids():
            exact = two.read(clip_id).astype(np.float32)
            assert np.linalg.norm(one.read(clip_id) - exact) < tolerance * np.linalg.norm(exact)
            np.testing.assert_array_equal(one.frame_seconds(clip_id), two.frame_seconds(clip_id))


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_lower_precisions_are_close_to_float32_and_say_so_in_the_contract(
    precision: str, tolerance: float, corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    clips, root = corpus[0][1:2], corpus[1]
    _, full = extract(clips, root, weights, tmp_path, dtype="float32")
    with open_view(full / "layer4") as view:
        contract, exact = view.contract, view.read("short")
    _, features = extract(clips, root, weights, tmp_path, dtype="float32", precision=precision)
    with open_view(features / "layer4") as view:
        assert view.contract.differences(contract) == {"precision": (precision, "float32")}
        error = np.linalg.norm(view.read("short") - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < tolerance


class StopAtTheFourthItem(threading.Event):
    """Is asked before each item: a clip's frames, its end, the next clip's frames, its end."""

    num_asked = 0
    error: BaseException | None = None

    def is_set(self) -> bool:
        self.num_asked += 1
        if self.num_asked == 4 and self.error:
            raise self.error
        return self.num_asked >= 4


@pytest.mark.parametrize("how", ["stopped", "interrupted", "progress fails"])
def test_a_run_that_ends_early_keeps_the_clips_that_are_complete(
    how: str, corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    clips = [corpus[0][1], corpus[0][2], corpus[0][0]]  # of 3, 6 and 13 frames
    told: list[tuple[int, int, int]] = []

    def tell(*progress: int) -> None:
        told.append(progress)
        if progress[0] and how == "progress fails":
            raise ZeroDivisionError

    stop = StopAtTheFourthItem()
    stop.error = KeyboardInterrupt() if how == "interrupted" else None
    error = {"stopped": None, "interrupted": KeyboardInterrupt, "progress fails": ZeroDivisionError}[how]
    with pytest.raises(error) if error else contextlib.nullcontext():
        extract(
            clips, corpus[1], weights, tmp_path, tell, stop if how != "progress fails" else None, batch_size=1
        )
    assert told[:4] == [(0, 1, 1024), (0, 1, 1024), (0, 1, 1024), (1, 0, 0)]
    result, features = extract(clips, corpus[1], weights, tmp_path, batch_size=1)
    assert (result.num_clips, result.num_frames, result.num_bytes) == (2, 19, 19 * 1024)
    with open_view(features / "layer4") as view:
        assert len(view) == 3


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

    monkeypatch.setattr("pipeline.extraction.decode.read_frames", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        extract(*corpus, weights, tmp_path)


def test_frames_smaller_than_the_crop_are_a_reason_not_a_crash(weights: Weights, tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", num_frames=3, size=(32, 32))
    clips = [Clip(clip_id="a", sources=("a.mp4",), split="train")]
    preprocessing = {"resize": None, "crop": 64}
    result, features = extract(clips, tmp_path, weights, tmp_path, preprocessing=preprocessing)
    assert result.num_quarantined == 1
    with pytest.raises(ValueError, match="a frame of 32 x 32 pixels is smaller than the crop of 64 x 64"):
        preprocess(torch.zeros(1, 32, 32, 3, dtype=torch.uint8), Preprocessing(resize=None, crop=64))
    with open_view(features / "layer4") as view:
        assert len(view) == 0


def test_a_clip_whose_frames_would_be_giant_when_resized_is_refused_and_the_others_go_on(
    corpus: tuple[list[Clip], Path], weights: Weights, tmp_path: Path
) -> None:
    """A strip of 60000 x 2 pixels would be 7680000 x 256, 6 GB."""
    clips, root = corpus
    Image.new("L", (60000, 2)).save(root / "strip.png")
    strip = Clip(clip_id="strip", sources=("strip.png",), split="train")
    preprocessing = {"resize": 256, "crop": 32}
    with little_memory():
        result, features = extract([strip, *clips], root, weights, tmp_path, preprocessing=preprocessing)
    assert (result.num_clips, result.num_quarantined, result.failed) == (3, 1, {})
    with open_view(features / "layer4") as view:
        assert sorted(view.clip_ids()) == ["images", "long", "short"]


# Mean and deviation of four channels of resnet18's layer4 (random:0) over three frames of real video.
GOLDEN_REVISION = 3
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
