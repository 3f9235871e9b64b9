import logging
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.sequences import to_sequence
from pipeline.streaming import (
    Loader,
    ResidentFeatures,
    channel_statistics,
    keep_resident,
    read_batch,
    with_features,
)
from tests.toy import make_clip, make_features, random_maps

SHAPE = (3, 2, 4)
sizes = st.integers(1, 4)


def clips_of(maps: dict[str, np.ndarray]) -> list:
    return [make_clip(clip_id) for clip_id in maps]


def in_batches_of_two(features, clips, **options) -> Loader:
    return Loader(features, clips, **{"batch_size": 2, "num_threads": 2, **options})


@given(sizes, sizes, sizes, sizes, sizes)
def test_frames_flattened_are_channel_then_row_then_column(batch, frames, channels, height, width):
    maps = torch.rand(batch, frames, channels, height, width)
    steps, lengths = to_sequence(maps, torch.full((batch,), frames), scan="frames", pooling="flatten")
    assert lengths.tolist() == [frames] * batch
    for b in range(batch):
        for t in range(frames):
            expected = [
                maps[b, t, c, y, x].item()
                for c in range(channels)
                for y in range(height)
                for x in range(width)
            ]
            assert steps[b, t].tolist() == expected


@given(sizes, sizes, sizes, sizes, sizes, st.sampled_from(["avg", "max"]))
def test_pooled_frames_have_one_value_a_channel(batch, frames, channels, height, width, pooling):
    maps = torch.rand(batch, frames, channels, height, width, dtype=torch.float64)
    steps, _ = to_sequence(maps, torch.full((batch,), frames), scan="frames", pooling=pooling)
    assert steps.shape == (batch, frames, channels)
    for b in range(batch):
        for t in range(frames):
            for c in range(channels):
                values = [maps[b, t, c, y, x].item() for y in range(height) for x in range(width)]
                expected = max(values) if pooling == "max" else sum(values) / len(values)
                assert steps[b, t, c].item() == pytest.approx(expected, rel=1e-12)


def test_a_batch_is_zero_padded_and_carries_lengths():
    maps = random_maps([3, 1, 5], SHAPE)
    batch = read_batch(make_features(maps), tuple(clips_of(maps)))
    assert batch.lengths.tolist() == [3, 1, 5]
    assert batch.maps.shape == (3, 5, *SHAPE)
    assert batch.maps.dtype == torch.float16
    for row, clip, length in zip(batch.maps.numpy(), maps.values(), [3, 1, 5], strict=True):
        np.testing.assert_array_equal(row[:length], clip)
        assert not row[length:].any()


def test_an_epoch_has_every_clip_once_in_an_order_that_follows_from_seed_and_epoch():
    maps = random_maps([2] * 9, SHAPE)
    features, clips = make_features(maps), clips_of(maps)

    def order(seed: int | None, epoch: int, num_threads: int = 2) -> list[str]:
        loader = in_batches_of_two(features, clips, shuffle_seed=seed, num_threads=num_threads)
        return [clip.clip_id for batch in loader.epoch(epoch) for clip in batch.clips]

    assert order(None, 0) == order(None, 1) == list(maps)
    assert sorted(order(7, 0)) == sorted(maps)
    assert order(7, 0) == order(7, 0, num_threads=5)
    assert len({tuple(order(seed, epoch)) for seed in (7, 8) for epoch in (0, 1)}) == 4


@given(st.integers(1, 12), st.integers(1, 5))
def test_the_number_of_batches_is_known_before(num_clips, batch_size):
    maps = random_maps([1] * num_clips, (1, 1, 1))
    loader = Loader(make_features(maps), clips_of(maps), batch_size=batch_size, num_threads=1)
    assert len(loader) == len(list(loader.epoch()))


class Watched(ResidentFeatures):
    """Counts reads, and fails at one clip."""

    def __init__(self, features: ResidentFeatures, *, broken: str = "") -> None:
        super().__init__(features.path, features.contract, features.rows, features.spans)
        object.__setattr__(self, "broken", broken)
        object.__setattr__(self, "reads", [])

    def read_into(self, clip_id, out, *, first_frame=0):
        if clip_id == self.broken:
            raise OSError(5, "Input/output error", clip_id)
        self.reads.append(clip_id)
        super().read_into(clip_id, out, first_frame=first_frame)


def test_an_error_in_a_reading_thread_reaches_the_caller():
    maps = random_maps([2] * 10, SHAPE)
    loader = in_batches_of_two(Watched(make_features(maps), broken="c7"), clips_of(maps))
    batches = []
    with pytest.raises(OSError, match="Input/output error"):
        batches.extend(loader.epoch())
    assert len(batches) == 3
    assert not loader_threads()


def test_reading_ahead_is_bounded_and_an_abandoned_epoch_ends_its_threads():
    maps = random_maps([2] * 40, SHAPE)
    features = Watched(make_features(maps))
    epoch = in_batches_of_two(features, clips_of(maps)).epoch()
    next(epoch)
    while len(features.reads) < 6:
        time.sleep(0.001)
    assert len(features.reads) == 6  # the batch in hand and two ahead
    epoch.close()
    assert len(features.reads) == 6
    assert not loader_threads()


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_resident_features_are_read_once_and_give_the_same_batches():
    maps = random_maps([3, 1, 5, 2], SHAPE)
    features, clips = Watched(make_features(maps)), clips_of(maps)[:3]
    resident = keep_resident(features, clips, limit_bytes=9 * 3 * 2 * 4 * 2)
    assert features.reads == ["c0", "c1", "c2"]
    assert "c3" not in resident
    for got, expected in zip(
        in_batches_of_two(resident, clips).epoch(), in_batches_of_two(features, clips).epoch(), strict=True
    ):
        assert torch.equal(got.maps, expected.maps)
        assert torch.equal(got.lengths, expected.lengths)
    part = np.empty((2, *SHAPE), np.float16)
    resident.read_into("c2", part, first_frame=1)
    np.testing.assert_array_equal(part, maps["c2"][1:3])


def test_features_over_the_limit_are_streamed():
    maps = random_maps([3, 1, 5], SHAPE)
    features = make_features(maps)
    assert keep_resident(features, clips_of(maps), limit_bytes=9 * 3 * 2 * 4 * 2 - 1) is features


def test_clips_without_features_are_left_out_and_named(caplog):
    maps = random_maps([1, 1], SHAPE)
    clips = [*clips_of(maps), make_clip("broken"), make_clip("gone")]
    with caplog.at_level(logging.WARNING):
        found = with_features(clips, make_features(maps))
    assert [clip.clip_id for clip in found] == ["c0", "c1"]
    assert caplog.messages == ["2 of 4 clips have no features and are left out: broken, gone"]


def test_statistics_are_those_of_the_given_clips_alone():
    maps = random_maps([3, 1, 5], SHAPE)
    maps["c2"] *= 100
    maps["c0"][:, 1] = maps["c1"][:, 1] = 0.25
    statistics = channel_statistics(make_features(maps), clips_of(maps)[:2])
    values = np.concatenate([maps["c0"], maps["c1"]]).astype(np.float64)
    np.testing.assert_allclose(statistics.mean, values.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(statistics.std[[0, 2]], values.std(axis=(0, 2, 3))[[0, 2]], rtol=1e-6)
    assert statistics.std[1] == 1  # a constant channel


def test_statistics_of_values_with_a_large_mean_are_exact():
    values = (1000 + np.random.default_rng(0).standard_normal((20, 2, 3, 3))).astype(np.float32)
    features = make_features({"c0": values[:7], "c1": values[7:]})
    statistics = channel_statistics(features, [make_clip("c0"), make_clip("c1")])
    np.testing.assert_allclose(statistics.std, values.astype(np.float64).std(axis=(0, 2, 3)), rtol=1e-6)
