"""Features of one clip that are appended, and read again, from memory and from a temporary file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.deploy.spooled import SpooledFeatures
from pipeline.learn.streaming import Loader
from tests.support.features import clip_maps, frame_times, make_contract
from tests.support.toy import make_clip


def spooled(num_frames: int, *, memory_bytes: int) -> tuple[SpooledFeatures, np.ndarray]:
    """Features of the clip c, appended in pieces of four frames, and its maps."""
    maps, seconds = clip_maps("c", num_frames), frame_times(num_frames)
    features = SpooledFeatures("c", path=Path("c.mp4"), contract=make_contract(), memory_bytes=memory_bytes)
    for first in range(0, num_frames, 4):
        piece = slice(first, first + 4)
        features.append(torch.from_numpy(maps[piece]), seconds[piece])
    return features, maps


@pytest.mark.parametrize("memory_bytes", [100, 1 << 20], ids=["in a file", "in memory"])
def test_features_are_read_as_they_were_appended(memory_bytes):
    features, maps = spooled(10, memory_bytes=memory_bytes)
    with features:
        assert features.num_frames("c") == 10
        assert (features.map_shape, features.dtype) == (maps.shape[1:], maps.dtype)
        assert ("c" in features, "d" in features) == (True, False)
        np.testing.assert_array_equal(features.frame_seconds("c"), frame_times(10))
        found = np.empty((3, *maps.shape[1:]), maps.dtype)
        for first in (7, 0, 3):
            features.read_into("c", found, first_frame=first)
            np.testing.assert_array_equal(found, maps[first : first + 3])


def test_a_loader_reads_overlapping_windows_of_them():
    features, maps = spooled(10, memory_bytes=100)
    with features:
        (batch,) = Loader(features, [make_clip("c")], 8, 2, window=4, stride=2).epoch()
        assert batch.first_frames == (0, 2, 4, 6)
        for window, first in zip(batch.maps.numpy(), batch.first_frames, strict=True):
            np.testing.assert_array_equal(window, maps[first : first + 4])


def test_leaving_them_closes_the_file():
    features, maps = spooled(10, memory_bytes=100)
    with features:
        pass
    with pytest.raises(ValueError, match="closed"):
        features.read_into("c", np.empty_like(maps))
