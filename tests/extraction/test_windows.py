"""Windows of frames, for networks that read several at once: against a brute-force loop, and end to end."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.backbone import preprocess
from pipeline.contract import CENTER, FrameView, Preprocessing, Sampling, Windows
from pipeline.deploy.end_to_end import EndToEnd, clip_features
from pipeline.errors import ContractError
from pipeline.extraction import PlannedClip, Target
from pipeline.extraction.compute import Computed, Packer
from pipeline.extraction.decode import ClipEnd, Piece
from pipeline.extraction.lanes import make_lanes
from pipeline.extraction.runners import CpuRunner, Outputs
from pipeline.frames import read_frames
from pipeline.learn.models import build_model
from pipeline.manifest import Clip
from pipeline.settings.model import ModelConfig
from pipeline.store import open_view
from tests.support.extraction import extract, random_weights
from tests.support.features import make_contract, make_layout
from tests.support.media import write_video
from tests.support.toy import make_clip


class ToyVideoNet:
    """A network for clips: three numbers of each, to which frames add with weights of their own."""

    arch, taps, precision, backend = "resnet18", ("layer4",), "float32", "eager"
    device = torch.device("cpu")

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames

    def map_shape(self, tap: str, height: int, width: int) -> tuple[int, int, int]:  # noqa: ARG002
        return 3, 1, 1

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        """(B, 3, T, h, w) -> (B, 3, 1, 1)."""
        assert pixels.shape[1:3] == (3, self.num_frames)
        weights = torch.arange(1, self.num_frames + 1) / 8
        means = pixels.float().mean(dim=(3, 4)) * weights  # (B, 3, T)
        return {"layer4": (means.sum(dim=2) / 64)[..., None, None]}


def windows_by_hand(frames: Sequence[int], windows: Windows) -> Iterator[list[int]]:
    """The frames of each row, one centre after the other."""
    for center in range(0, len(frames), windows.stride):
        row = []
        for place in range(center - windows.frames // 2, center - windows.frames // 2 + windows.frames):
            row.append(frames[min(max(place, 0), len(frames) - 1)])
        yield row


def planned(number: int, names: tuple[str, ...]) -> PlannedClip:
    return PlannedClip(make_clip(f"c{number}"), number.to_bytes(16, "big"), "new", names)


@settings(max_examples=150, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9)), max_size=20),
    windows=st.builds(Windows, frames=st.integers(1, 9), stride=st.integers(1, 12)),
    batch_size=st.integers(1, 5),
    views=st.sampled_from([(CENTER,), (CENTER, FrameView(flip=True))]),
)
def test_windows_of_mixed_clips_are_those_of_a_loop_over_whole_clips(
    pieces: list[tuple[int, int]], windows: Windows, batch_size: int, views: tuple[FrameView, ...]
) -> None:
    contracts = [make_contract(tap="tap", view=view, windows=windows) for view in views]
    names = tuple(contract.name for contract in contracts)

    def forward(pixels: Tensor) -> Outputs[Tensor]:
        shown = pixels[:, 0, :, 0, 0].float()  # (B, T): the red of the first pixel
        return Outputs({"tap": shown[..., None, None]}, {"tap": shown.amax(dim=1)})

    batch = torch.zeros(batch_size, 3, windows.frames, 1, 2, dtype=torch.uint8)
    runner = CpuRunner(forward, batch, Preprocessing(resize=None, crop=(1, 2)), make_lanes(num_decoders=1))
    packer = Packer(runner, [Target(contract, make_layout(contract)) for contract in contracts])
    clips = [planned(number, names) for number in range(4)]
    sent: dict[bytes, list[int]] = {clip.key: [] for clip in clips}
    out: list[Computed | ClipEnd] = []
    value = 0
    for number, count in pieces:
        values = [(value + place) % 120 for place in range(count)]
        value += count
        sent[clips[number].key] += values
        left = torch.tensor(values, dtype=torch.uint8)
        right = left + 120  # a flip shows it first
        pixels = torch.stack([left, right], dim=1)[:, None, :, None].expand(-1, 1, 2, 3)
        out += packer.add(Piece(clips[number], pixels, np.array(values, dtype=np.float64)))
    for clip in clips:
        out += packer.add(ClipEnd(clip, None))
    out += packer.finish()
    for contract, added in zip(contracts, (0, 120), strict=False):
        for clip in clips:
            rows, times = [], []
            for item in out:
                if (
                    isinstance(item, Computed)
                    and item.segment.clip is clip
                    and item.segment.view == contract.view
                ):
                    rows += item.outputs.rows[contract.name][..., 0, 0].tolist()
                    times += item.segment.frame_seconds.tolist()
            expected = list(windows_by_hand(sent[clip.key], windows))
            assert rows == [[value + added for value in row] for row in expected]
            assert times == sent[clip.key][:: windows.stride]
            assert len(rows) == windows.num_rows(len(sent[clip.key]))
    num_rows = sum(windows.num_rows(len(values)) for values in sent.values()) * len(views)
    assert packer.num_batches == -(-num_rows // batch_size)


def test_windows_of_a_damaged_clip_are_left_out_unless_it_is_kept() -> None:
    contract = make_contract(tap="tap", windows={"frames": 3, "stride": 1})
    for keep in (False, True):
        batch = torch.zeros(2, 3, 3, 1, 1, dtype=torch.uint8)
        runner = CpuRunner(
            lambda pixels: Outputs(
                {"tap": pixels[:, 0].float()}, {"tap": pixels.float().amax(dim=(1, 2, 3, 4))}
            ),
            batch,
            Preprocessing(resize=None, crop=1),
            make_lanes(num_decoders=1),
        )
        packer = Packer(runner, [Target(contract, make_layout(contract))])
        clip = PlannedClip(make_clip("c"), b"k" * 16, "new", ("tap",), keep_damaged=keep)
        out = packer.add(Piece(clip, torch.zeros(4, 1, 1, 3, dtype=torch.uint8), np.arange(4.0)))
        out += [*packer.add(ClipEnd(clip, ValueError("damaged"))), *packer.finish()]
        num_rows = sum(len(item.segment.frame_seconds) for item in out if isinstance(item, Computed))
        assert num_rows == (4 if keep else 3)


def test_a_network_for_clips_is_extracted_and_predicted_with_in_the_same_windows(tmp_path: Path) -> None:
    root, windows = tmp_path / "corpus", {"frames": 4, "stride": 3}
    write_video(root / "long.mp4", num_frames=11, size=(32, 32))
    write_video(root / "short.mp4", num_frames=2, size=(32, 32), first_index=40)
    clips = [Clip(clip_id=name, sources=(f"{name}.mp4",), split="train") for name in ("long", "short")]
    net = ToyVideoNet(4)
    _, features = extract(
        clips, root, random_weights(), tmp_path, backbone=net, windows=windows, dtype="float32"
    )
    with open_view(features / "layer4") as view:
        assert (view.num_frames("long"), view.num_frames("short")) == (4, 1)
        for clip in clips:
            (batch,) = read_frames([root / clip.sources[0]], sampling=Sampling())
            frames = preprocess(torch.from_numpy(batch.pixels), view.contract.preprocessing)
            rows = list(windows_by_hand(range(len(frames)), Windows(**windows)))
            expected = [net(frames[row].transpose(0, 1)[None])["layer4"][0].numpy() for row in rows]
            np.testing.assert_allclose(view.read(clip.clip_id), expected, rtol=1e-5)
            np.testing.assert_array_equal(view.frame_seconds(clip.clip_id), batch.frame_seconds[::3])
            with clip_features(clip, root=root, backbone=net, contract=view.contract, batch_size=3) as own:
                found = np.empty((len(rows), 3, 1, 1), np.float32)
                own.read_into(clip.clip_id, found)
                np.testing.assert_allclose(found, expected, rtol=1e-5)
                np.testing.assert_array_equal(own.frame_seconds(clip.clip_id), batch.frame_seconds[::3])
        model = build_model("recurrent", ModelConfig(), map_shapes=[(3, 1, 1)], num_outputs=2)
        with pytest.raises(ContractError, match="resnet18 reads windows of 4 frames"):
            EndToEnd(model, contract=view.contract, weights=random_weights())
