"""Networks of every family, views and windows on a GPU: captured in a graph, with the features of a CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.contract import Preprocessing
from pipeline.extraction.lanes import make_lanes
from pipeline.extraction.runners import CudaRunner, Outputs
from pipeline.manifest import Clip
from pipeline.settings.networks import ARCHS
from pipeline.store import open_view
from tests.support.extraction import extract
from tests.support.media import write_video
from tests.support.networks import made_up_weights

pytestmark = pytest.mark.gpu

# The crop, and what else an extraction with a network needs.
NETWORKS: dict[str, tuple[int, dict[str, Any]]] = {
    "alexnet": (64, {}),
    "convnext_tiny": (64, {}),
    "densenet121": (64, {}),
    "efficientnet_b0": (64, {}),
    "googlenet": (64, {}),
    "inception_v3": (139, {}),
    "maxvit_t": (224, {}),
    "mnasnet0_5": (64, {}),
    "mobilenet_v2": (64, {}),
    "mobilenet_v3_small": (64, {}),
    "regnet_y_400mf": (64, {}),
    "shufflenet_v2_x0_5": (64, {}),
    "squeezenet1_1": (64, {}),
    "swin_t": (64, {}),
    "swin_v2_t": (64, {}),
    "vgg11_bn": (64, {}),
    "vit_b_16": (64, {}),
    "r3d_18": (64, {"windows": {"frames": 4, "stride": 3}}),
    "s3d": (224, {"windows": {"frames": 16, "stride": 4}}),
    "swin3d_t": (64, {"windows": {"frames": 8, "stride": 4}}),
    "mvit_v2_s": (224, {"windows": {"frames": 16, "stride": 8}}),
}
OFTEN = {"swin_t": ["float16", "bfloat16"], "convnext_tiny": ["float16"], "r3d_18": ["float16"]}
TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}


@pytest.mark.parametrize(
    ("arch", "precision"),
    [(arch, precision) for arch in NETWORKS for precision in ("float32", *OFTEN.get(arch, ()))],
)
def test_features_are_close_to_a_cpus_and_the_same_bits_whatever_their_neighbours(
    arch: str, precision: str, tmp_path: Path
) -> None:
    crop, fields = NETWORKS[arch]
    weights = made_up_weights(arch, **({"image_size": crop} if arch.startswith("vit") else {}))
    clips = []
    for number, num_frames in enumerate((5, 9)):
        write_video(tmp_path / f"{number}.mp4", num_frames=num_frames, size=(80, 80), first_index=40 * number)
        clips.append(Clip(f"clip{number}", (f"{number}.mp4",), "train"))
    taps = ARCHS[arch].taps
    options = {
        "taps": [taps[0], taps[len(taps) // 2], taps[-1]],
        "views": ["center", {"corner": "top_left", "flip": True}],
        "preprocessing": {"resize": crop + 8, "crop": crop},
        "dtype": "float32",
        **fields,
    }
    _, on_cpu = extract(clips, tmp_path, weights, tmp_path / "cpu", **options)
    options |= {"device": "cuda", "precision": precision}
    _, on_gpu = extract(clips, tmp_path, weights, tmp_path / "gpu", **options)
    _, alone = extract(clips[1:], tmp_path, weights, tmp_path / "alone", **options)
    names = sorted(path.name for path in on_cpu.iterdir() if path.is_dir())
    assert len(names) == 6
    for name in names:
        with open_view(on_gpu / name) as view, open_view(alone / name) as other:
            np.testing.assert_array_equal(other.read("clip1"), view.read("clip1"))
        with open_view(on_cpu / name) as one, open_view(on_gpu / name) as two:
            for clip in clips:
                exact, found = one.read(clip.clip_id), two.read(clip.clip_id)
                assert np.linalg.norm(found - exact) < TOLERANCES[precision] * np.linalg.norm(exact), name
                np.testing.assert_array_equal(
                    one.frame_seconds(clip.clip_id), two.frame_seconds(clip.clip_id)
                )


@pytest.mark.parametrize("kind", ["copies from the host", "looks at a value", "sound"])
def test_a_network_that_cannot_be_captured_runs_kernel_by_kernel(kind: str) -> None:
    def forward(pixels: Tensor) -> Outputs[Tensor]:
        rows = pixels[:, :, :1, :1].float()
        if kind == "copies from the host":
            rows = rows[torch.arange(4)]
        if kind == "looks at a value":
            rows = rows * (2 if rows.sum().item() > 12 else 1)
        return Outputs({"tap": rows}, {"tap": rows.amax((1, 2, 3))})

    batch = torch.zeros(4, 3, 8, 8, dtype=torch.uint8, device="cuda")
    runner = CudaRunner(forward, batch, Preprocessing(resize=None, crop=8), make_lanes(num_decoders=1))
    waits = []
    for value in (1, 2, 3):
        runner.batch.fill_(value)
        waits.append(runner.submit())
    for value, wait in zip((1, 2, 3), waits, strict=True):
        factor = 2 if kind == "looks at a value" and value > 1 else 1
        np.testing.assert_array_equal(wait().rows["tap"], np.full((4, 3, 1, 1), factor * value))
