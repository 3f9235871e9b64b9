"""From pixels to outputs in one module, and clip by clip, against features that were extracted and stored."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.backbone import Weights, preprocess
from pipeline.backbone.tails import tail_module
from pipeline.contract import FeatureContract
from pipeline.deploy.end_to_end import EndToEnd, clip_features, make_backbone
from pipeline.errors import ContractError, DecodeError, ShapeError, WeightsError
from pipeline.frames import read_frames
from pipeline.learn.models import build_model
from pipeline.manifest import Clip
from pipeline.settings.model import ModelConfig
from pipeline.store import FeatureView, open_view
from tests.support.extraction import extract, random_weights
from tests.support.media import write_image_folder, write_video

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
CLIPS = [
    Clip(clip_id="video", sources=("video.mp4",), split="test"),
    Clip(clip_id="part", sources=("video.mp4",), split="test", start_seconds=0.3, end_seconds=0.6),
    Clip(clip_id="folder", sources=("folder",), split="test"),
    Clip(clip_id="image", sources=("folder/2.png",), split="test"),
]
VARIANTS = {
    "maps": {},
    "pooled": {"pooling": "avg", "dtype": "float32", "sampling": {"count": 3}},
}


@dataclass(frozen=True)
class Extracted:
    """Sources below `root`, and their features as extraction stores them."""

    root: Path
    weights: Weights
    views: dict[str, FeatureView]  # of VARIANTS


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Extracted]:
    root = tmp_path_factory.mktemp("end_to_end")
    write_video(root / "video.mp4", num_frames=7, size=(48, 64))
    write_image_folder(root / "folder", num_images=4, size=(64, 48))
    weights = random_weights()
    views = {name: extract_view(root, weights, root / name, **changes) for name, changes in VARIANTS.items()}
    yield Extracted(root, weights, views)
    for view in views.values():
        view.close()


def extract_view(root: Path, weights: Weights, path: Path, **changes: object) -> FeatureView:
    fields = {"taps": ["layer3"], "preprocessing": {"resize": 40, "crop": 32}, **changes}
    _, features = extract(CLIPS, root, weights, path, **fields)
    return open_view(features / "layer3")


def frames_of(clip: Clip, *, root: Path, contract: FeatureContract) -> Tensor:
    """(T, 3, h, w) uint8."""
    batches = read_frames(
        [root / source for source in clip.sources],
        sampling=contract.sampling,
        start_seconds=clip.start_seconds,
        end_seconds=clip.end_seconds,
    )
    return torch.cat(
        [preprocess(torch.from_numpy(batch.pixels), contract.preprocessing) for batch in batches]
    )


def make_model(view: FeatureView, *, tail: nn.Module | None = None, per_frame: bool = False) -> nn.Module:
    config = ModelConfig(hidden_size=6, projection=8, bidirectional=True)
    shape = {"map_shapes": [view.map_shape], "num_outputs": 3}
    return build_model("recurrent", config, **shape, tail=tail, per_frame=per_frame, seed=1).eval()


@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_raw_frames_through_network_and_model_equal_the_cached_path(
    extracted: Extracted, variant: str, per_frame: bool
) -> None:
    view = extracted.views[variant]
    model = make_model(view, per_frame=per_frame)
    network = EndToEnd(model, contract=view.contract, weights=extracted.weights).eval()
    for clip in CLIPS:
        frames = frames_of(clip, root=extracted.root, contract=view.contract)[None]  # (1, T, 3, H, W)
        cached = model(torch.from_numpy(view.read(clip.clip_id))[None])
        torch.testing.assert_close(network(frames), cached, rtol=1e-3, atol=1e-4)


def test_a_padded_batch_of_raw_frames_equals_each_clip_alone(extracted: Extracted) -> None:
    view = extracted.views["maps"]
    tail = tail_module("resnet18", after="layer3", until="layer4", state=extracted.weights.state)
    network = EndToEnd(make_model(view, tail=tail), contract=view.contract, weights=extracted.weights).eval()
    clips = [frames_of(clip, root=extracted.root, contract=view.contract) for clip in CLIPS]
    lengths = torch.tensor([len(clip) for clip in clips])
    assert lengths.tolist() == [7, 3, 4, 1]
    together = network(nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=99), lengths)
    for clip, outputs in zip(clips, together, strict=True):
        torch.testing.assert_close(network(clip[None])[0], outputs, rtol=1e-3, atol=1e-4)


def test_the_frozen_network_has_no_gradients_and_the_model_the_cached_paths(extracted: Extracted) -> None:
    view = extracted.views["pooled"]
    model = make_model(view)
    network = EndToEnd(model, contract=view.contract, weights=extracted.weights).train()
    assert not any(module.training for module in network.trunk.modules())
    assert not any(parameter.requires_grad for parameter in network.trunk.parameters())
    model.eval()
    clip = CLIPS[0]
    network(frames_of(clip, root=extracted.root, contract=view.contract)[None]).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(torch.from_numpy(view.read(clip.clip_id))[None]).sum().backward()
    for ours, cached in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(ours, cached.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_of_a_clip_are_those_that_extraction_stores(extracted: Extracted, variant: str) -> None:
    view = extracted.views[variant]
    backbone = make_backbone(view.contract, extracted.weights, device=CPU)
    for clip in CLIPS:
        num_frames: list[int] = []
        features = clip_features(
            clip,
            root=extracted.root,
            backbone=backbone,
            contract=view.contract,
            batch_size=3,
            on_frames=num_frames.append,
        )
        with features:
            assert max(num_frames) <= 3
            assert sum(num_frames) == features.num_frames(clip.clip_id) == view.num_frames(clip.clip_id)
            assert features.dtype == view.dtype
            maps = np.empty((view.num_frames(clip.clip_id), *view.map_shape), view.dtype)
            features.read_into(clip.clip_id, maps)
            seconds = features.frame_seconds(clip.clip_id)
        np.testing.assert_allclose(maps, view.read(clip.clip_id), rtol=2e-3, atol=1e-4)
        np.testing.assert_array_equal(seconds, view.frame_seconds(clip.clip_id))


def test_bytes_that_are_no_frames_are_a_decode_error(extracted: Extracted, tmp_path: Path) -> None:
    view = extracted.views["maps"]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match=r"bad\.mp4"):
        clip_features(
            Clip(clip_id="bad", sources=("bad.mp4",), split="test"),
            root=tmp_path,
            backbone=make_backbone(view.contract, extracted.weights, device=CPU),
            contract=view.contract,
        )


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"\(2, 3, 32, 32\) torch.uint8"),
        (torch.zeros(1, 2, 3, 32, 40, dtype=torch.uint8), r"\(1, 2, 3, 32, 40\) torch.uint8"),
        (torch.zeros(1, 2, 3, 32, 32), r"\(1, 2, 3, 32, 32\) torch.float32"),
    ],
)
def test_frames_of_another_shape_or_type_are_refused_with_both(
    extracted: Extracted, frames: Tensor, found: str
) -> None:
    view = extracted.views["maps"]
    network = EndToEnd(make_model(view), contract=view.contract, weights=extracted.weights)
    expected = r"reads \(B, T, 3, H, W\) = \(clips, frames, 3, 32, 32\) torch.uint8"
    with pytest.raises(ShapeError, match=f"Frames are {found}, but the network {expected}"):
        network(frames)


def test_other_weights_and_another_revision_are_refused(extracted: Extracted) -> None:
    view = extracted.views["maps"]
    model = make_model(view)
    other = view.contract.model_copy(update={"weights_sha256": "1" * 64})
    with pytest.raises(WeightsError, match=rf"with sha256 {extracted.weights.sha256}, .* sha256 {'1' * 64}"):
        EndToEnd(model, contract=other, weights=extracted.weights)
    old = view.contract.model_copy(update={"revision": 0})
    with pytest.raises(ContractError, match="trained on features of revision 0; this version"):
        EndToEnd(model, contract=old, weights=extracted.weights)
