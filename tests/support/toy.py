"""Small clips with features in memory, and a task that only the order of frames solves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.learn.streaming import ResidentFeatures
from pipeline.manifest import Clip
from tests.support.features import frame_times, make_contract


def make_clip(clip_id: str, **fields: object) -> Clip:
    defaults = {"clip_id": clip_id, "sources": (f"{clip_id}.mp4",), "split": "train"}
    return Clip(**{**defaults, **fields})  # type: ignore[arg-type]


def make_features(maps: dict[str, np.ndarray]) -> ResidentFeatures:
    """Features in memory, from {clip_id: (T, C, H, W)}."""
    firsts = np.cumsum([0, *(len(clip) for clip in maps.values())])
    spans = {
        clip_id: (int(first), len(clip))
        for (clip_id, clip), first in zip(maps.items(), firsts[:-1], strict=True)
    }
    return ResidentFeatures(
        Path("features/layer4"),
        make_contract(),
        rows=torch.from_numpy(np.concatenate(list(maps.values()))),
        row_frame_seconds=np.concatenate([frame_times(len(clip)) for clip in maps.values()]),
        spans=spans,
    )


def order_task(
    num_clips: int, *, split: str = "train", seed: int = 0
) -> tuple[list[Clip], dict[str, np.ndarray]]:
    """Clips of 4 to 7 frames of noise (2, 1, 1), each with one spike in either channel.

    The label names the channel whose spike comes first: the mean over time knows nothing about it.
    """
    rng = np.random.default_rng(seed)
    clips, maps = [], {}
    for number in range(num_clips):
        clip_id, label = f"{split}{number}", number % 2
        num_frames = int(rng.integers(4, 8))
        clip = rng.normal(0, 0.1, (num_frames, 2, 1, 1)).astype(np.float16)
        early, late = sorted(rng.choice(num_frames, 2, replace=False))
        clip[early, label] += 3
        clip[late, 1 - label] += 3
        clips.append(make_clip(clip_id, split=split, label=("first", "second")[label]))
        maps[clip_id] = clip
    return clips, maps


def random_maps(
    lengths: Sequence[int], shape: tuple[int, int, int], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """{c0: (T, C, H, W), c1: ...} in float16."""
    rng = np.random.default_rng(seed)
    return {
        f"c{i}": rng.standard_normal((length, *shape)).astype(np.float16) for i, length in enumerate(lengths)
    }
