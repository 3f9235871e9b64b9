import contextlib
import ctypes
import itertools
import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.learn.streaming import (
    Loader,
    ResidentFeatures,
    channel_statistics,
    keep_resident,
    make_loader,
    statistics,
    with_features,
)
from pipeline.learn.streaming.buffers import Buffers, copy_ahead
from pipeline.learn.streaming.samples import window_starts
from pipeline.settings.training import LoaderConfig
from pipeline.store import open_view
from tests.support.features import FORMATS, MAP_SHAPE, clip_maps, frame_times, make_view
from tests.support.toy import make_clip, make_features, random_maps

SHAPE = (3, 2, 4)
FRAME_BYTES = 3 * 2 * 4 * 2


def clips_of(maps: dict[str, np.ndarray]) -> list:
    return [make_clip(clip_id) for clip_id in maps]


@dataclass(frozen=True)
class Streamed:
    """Features that are read clip by clip. Notes what is read, and fails at one clip."""

    resident: ResidentFeatures
    broken: str = ""
    reads: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.resident, name)

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self.resident

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:
        if clip_id == self.broken:
            raise OSError(5, "Input/output error", clip_id)
        self.reads.append(clip_id)
        self.resident.read_into(clip_id, out, first_frame=first_frame)


def in_batches_of_two(features, clips, **options) -> Loader:
    return Loader(features, clips, **{"batch_size": 2, "num_threads": 2, **options})


def as_tuples(loader: Loader, epoch: int = 0) -> list[list[tuple[str, int, int]]]:
    """(clip, first frame, number of frames) of each sample of each batch."""
    return [
        [
            (clip.clip_id, first, int(length))
            for clip, first, length in zip(batch.clips, batch.first_frames, batch.lengths, strict=True)
        ]
        for batch in loader.epoch(epoch)
    ]


def lengths_and_options() -> st.SearchStrategy:
    windows = st.integers(1, 6).flatmap(
        lambda window: st.fixed_dictionaries(
            {"window": st.just(window), "stride": st.none() | st.integers(1, window)}
        )
    )
    crops = st.fixed_dictionaries({"crop_frames": st.integers(1, 6)})
    return st.tuples(
        st.lists(st.integers(1, 9), min_size=1, max_size=7),
        st.just({}) | windows | crops,
        st.fixed_dictionaries(
            {
                "batch_size": st.integers(1, 5),
                "shuffle_seed": st.none() | st.integers(0, 3),
                "bucketing": st.booleans(),
            }
        ),
    )


@pytest.mark.parametrize("wrap", [Streamed, lambda resident: resident], ids=["streamed", "resident"])
@settings(deadline=None)
@given(case=lengths_and_options(), epoch=st.integers(0, 3))
def test_a_batch_is_the_clips_frames_zero_padded_with_lengths_and_times(wrap, case, epoch):
    lengths, sampling, options = case
    maps = random_maps(lengths, SHAPE)
    loader = Loader(wrap(make_features(maps)), clips_of(maps), num_threads=2, **sampling, **options)
    batches = list(loader.epoch(epoch))
    assert len(batches) == len(loader)
    for batch in batches:
        size, num_steps = len(batch.clips), int(batch.lengths.max())
        assert len(batch.first_frames) == size <= options["batch_size"]
        assert batch.maps.shape == (size, num_steps, *SHAPE)
        assert batch.maps.dtype == torch.float16
        assert batch.frame_seconds.shape == (size, num_steps)
        assert batch.frame_seconds.dtype == torch.float64
        for i, (clip, first, length) in enumerate(
            zip(batch.clips, batch.first_frames, batch.lengths.tolist(), strict=True)
        ):
            frames = slice(first, first + length)
            expected = maps[clip.clip_id][frames]
            assert len(expected) == length
            np.testing.assert_array_equal(batch.maps[i, :length].numpy(), expected)
            assert not batch.maps[i, length:].any()
            times = frame_times(len(maps[clip.clip_id]))[frames]
            np.testing.assert_array_equal(batch.frame_seconds[i, :length].numpy(), times)
            assert batch.frame_seconds[i, length:].isnan().all()


def test_an_epoch_has_every_clip_once_in_an_order_that_follows_from_seed_and_epoch():
    maps = random_maps([2] * 9, SHAPE)
    features, clips = make_features(maps), clips_of(maps)

    def order(seed: int | None, epoch: int, num_threads: int = 2) -> list[str]:
        loader = in_batches_of_two(Streamed(features), clips, shuffle_seed=seed, num_threads=num_threads)
        return [clip.clip_id for batch in loader.epoch(epoch) for clip in batch.clips]

    assert order(None, 0) == order(None, 1) == list(maps)
    assert sorted(order(7, 0)) == sorted(maps)
    assert order(7, 0) == order(7, 0, num_threads=5)
    assert len({tuple(order(seed, epoch)) for seed in (7, 8) for epoch in (0, 1)}) == 4


def test_after_a_resume_an_epoch_is_the_one_that_would_have_come():
    maps = random_maps([3, 8, 5, 2, 9, 4, 7], SHAPE)
    options = {"shuffle_seed": 1, "crop_frames": 3, "bucketing": True}
    undisturbed = in_batches_of_two(make_features(maps), clips_of(maps), **options)
    epochs = [as_tuples(undisturbed, epoch) for epoch in range(4)]
    resumed = in_batches_of_two(make_features(maps), clips_of(maps), **options)
    assert as_tuples(resumed, 3) == epochs[3]
    assert epochs[3] not in epochs[:3]


def test_every_window_is_a_sample_and_the_last_is_flush_with_the_clips_end():
    maps = random_maps([11, 4, 3, 10], (1, 1, 1))
    loader = Loader(make_features(maps), clips_of(maps), 100, 1, window=4, stride=3)
    (samples,) = as_tuples(loader)
    assert samples == [
        *[("c0", first, 4) for first in (0, 3, 6, 7)],
        ("c1", 0, 4),
        ("c2", 0, 3),
        *[("c3", first, 4) for first in (0, 3, 6)],
    ]


@given(st.integers(1, 60), st.integers(1, 20), st.data())
def test_no_frame_is_outside_all_windows(num_frames, window, data):
    stride = data.draw(st.none() | st.integers(1, window))
    starts = window_starts(num_frames, window=window, stride=stride)
    length = min(window, num_frames)
    assert {frame for first in starts for frame in range(first, first + length)} == set(range(num_frames))
    assert starts == sorted(set(starts))
    steps = {later - first for first, later in itertools.pairwise(starts[:-1])}
    assert steps <= {stride or window}


def test_a_crop_depends_on_seed_epoch_and_its_own_clip_alone():
    maps = random_maps([20, 20, 3], (1, 1, 1))
    features, clips = make_features(maps), clips_of(maps)

    def crops(some: list, epoch: int, **options: object) -> dict[str, tuple[int, int]]:
        loader = in_batches_of_two(features, some, **{"shuffle_seed": 5, "crop_frames": 8, **options})
        return {name: (first, count) for batch in as_tuples(loader, epoch) for name, first, count in batch}

    assert crops(clips, 2)["c2"] == (0, 3)
    assert crops(clips, 2)["c1"] == crops([clips[1]], 2)["c1"] == crops(clips, 2, window=4)["c1"]
    starts = Counter(crops(clips, epoch)["c0"] for epoch in range(400))
    assert set(starts) == {(first, 8) for first in range(13)}
    assert max(starts.values()) < 60  # 31 expected of each
    assert [crops(clips, epoch)["c0"] for epoch in range(400)] != [
        crops(clips, epoch, shuffle_seed=6)["c0"] for epoch in range(400)
    ]


def test_bucketing_pads_less_and_still_shuffles():
    lengths = np.random.default_rng(0).integers(1, 40, 90).tolist()
    maps = random_maps(lengths, (1, 1, 1))
    features, clips = make_features(maps), clips_of(maps)
    options = {"batch_size": 6, "num_threads": 1, "shuffle_seed": 0}
    plain, bucketed = (Loader(features, clips, **options, bucketing=value) for value in (False, True))
    for loader in (plain, bucketed):
        batches = list(loader.epoch(3))
        assert sorted(clip.clip_id for batch in batches for clip in batch.clips) == sorted(maps)
        padding = sum(batch.frame_seconds.isnan().sum().item() for batch in batches)
        total = sum(batch.frame_seconds.numel() for batch in batches)
        assert loader.padding_share(3) == pytest.approx(padding / total)
    assert plain.padding_share(3) > 0.3
    assert bucketed.padding_share(3) < 0.06
    longest = [int(batch.lengths.max()) for batch in bucketed.epoch(3)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))
    assert as_tuples(bucketed, 3) == as_tuples(Loader(features, clips, **options, bucketing=True), 3)
    assert as_tuples(bucketed, 3) != as_tuples(bucketed, 4)
    in_order = Loader(features, clips, 6, 1, bucketing=True)
    assert [clip.clip_id for batch in in_order.epoch() for clip in batch.clips] == list(maps)


def test_clips_of_equal_length_are_batched_by_bucketing_in_another_mix_each_epoch():
    maps = random_maps([3] * 12, (1, 1, 1))
    loader = Loader(make_features(maps), clips_of(maps), 4, 1, shuffle_seed=0, bucketing=True)
    mixes = {frozenset(frozenset(name for name, *_ in b) for b in as_tuples(loader, e)) for e in range(4)}
    assert len(mixes) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4, "stride": 5}, "stride 5 is larger than window 4: frames between"),
        ({"window": 0}, "greater than 0"),
        ({"crop_frames": 0}, "greater than 0"),
    ],
)
def test_a_loader_configuration_that_loses_frames_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        LoaderConfig(**options)


def test_crops_and_bucketing_are_for_training_and_evaluation_sees_every_frame(caplog):
    maps = random_maps([9, 2, 7, 3], SHAPE)
    config = LoaderConfig(batch_size=2, window=4, crop_frames=3, bucketing=True)
    given = {"device": torch.device("cpu")}
    with caplog.at_level(logging.INFO):
        train = make_loader(make_features(maps), clips_of(maps), config, **given, shuffle_seed=0)
    val = make_loader(make_features(maps), clips_of(maps), config, **given)
    # A 2 beside three 3s.
    assert caplog.messages == ["Batches in an epoch: 2; 8 % of their frames are padding."]
    assert sorted(length for batch in as_tuples(train) for *_, length in batch) == [2, 3, 3, 3]
    assert [sample for batch in as_tuples(val) for sample in batch] == [
        *[("c0", first, 4) for first in (0, 4, 5)],
        ("c1", 0, 2),
        *[("c2", first, 4) for first in (0, 3)],
        ("c3", 0, 3),
    ]


def test_an_error_in_a_reading_thread_reaches_the_caller():
    maps = random_maps([2] * 10, SHAPE)
    loader = in_batches_of_two(Streamed(make_features(maps), broken="c7"), clips_of(maps))
    batches = []
    with pytest.raises(OSError, match="Input/output error"):
        batches.extend(loader.epoch())
    assert len(batches) == 3
    assert not loader_threads()


def test_reading_ahead_is_bounded_and_an_abandoned_epoch_ends_its_threads():
    maps = random_maps([2] * 40, SHAPE)
    features = Streamed(make_features(maps))
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


@pytest.mark.parametrize("wrap", [Streamed, lambda resident: resident], ids=["streamed", "resident"])
def test_a_batch_that_is_still_used_is_never_overwritten(wrap):
    maps = random_maps([2, 5, 1, 4, 3, 5] * 4, SHAPE)
    loader = in_batches_of_two(wrap(make_features(maps)), clips_of(maps), shuffle_seed=0)
    kept, expected = [], []
    for epoch in range(3):
        for number, batch in enumerate(loader.epoch(epoch)):
            if number % 3 == 0:
                part = batch.maps[-1, 0]  # keeps the memory, though the batch is gone
                kept.append(part if number % 2 else part.numpy())
                expected.append(maps[batch.clips[-1].clip_id][0])
    for part, frame in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(part), frame)


def test_memory_of_batches_is_used_again_once_nothing_points_to_it():
    maps = random_maps([5] * 40, SHAPE)
    loader = in_batches_of_two(Streamed(make_features(maps)), clips_of(maps))
    addresses = {batch.maps.data_ptr() for epoch in range(3) for batch in loader.epoch(epoch)}
    # In hand, three begun, and one that each of two threads is just letting go; of sixty.
    assert len(addresses) <= 6


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=30))
def test_buffers_that_are_held_keep_their_content(steps):
    buffers, held = Buffers(), []
    for value, (size, let_go) in enumerate(steps):
        if let_go and held:
            held.pop(value % len(held))
        held.append((buffers.take((size, 2), np.dtype(np.int32)).fill_(value), value))
        assert all((tensor == content).all() for tensor, content in held)


class LateStream:
    """A GPU's stream that works only when somebody waits for it: as late as a real one may be."""

    def __init__(self, _: object = None) -> None:
        self.queue: deque[Callable[[], object]] = deque()
        self.num_done = 0

    def wait_event(self, event: "LateEvent") -> None:
        self.queue.append(event.synchronize)

    def record_event(self) -> "LateEvent":
        return LateEvent(self, self.num_done + len(self.queue))

    def synchronize(self) -> None:
        self.record_event().synchronize()


@dataclass
class LateEvent:
    stream: LateStream
    position: int

    def synchronize(self) -> None:
        while self.stream.num_done < self.position:
            self.stream.num_done += 1
            self.stream.queue.popleft()()


class LateCopy:
    """A tensor of one int64 on its way to the GPU: read from the host's memory when its stream gets there."""

    def __init__(self, host: torch.Tensor, stream: LateStream) -> None:
        source = ctypes.c_int64.from_address(host.data_ptr())  # does not keep the memory from being reused
        stream.queue.append(lambda: setattr(self, "value", source.value))

    def record_stream(self, _: LateStream) -> None: ...


def test_pinned_memory_is_not_written_to_before_a_late_gpu_has_copied_it(monkeypatch):
    computing, buffers, lags = LateStream(), Buffers(), []
    current = [computing]

    @contextlib.contextmanager
    def on(stream: LateStream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", LateStream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current[-1])
    monkeypatch.setattr(torch.Tensor, "to", lambda host, *_, **__: LateCopy(host, current[-1]))

    def batches() -> Iterator[torch.Tensor]:
        for number in range(20):
            lags.append(number - len(computed))
            yield buffers.take((1,), np.dtype(np.int64)).fill_(number)

    computed: list[int] = []
    for copy in copy_ahead(batches(), torch.device("cuda")):
        computing.queue.append(lambda copy=copy: computed.append(copy.value))
    buffers.take((1,), np.dtype(np.int64)).fill_(-1)  # the next epoch begins
    computing.synchronize()
    assert computed == list(range(20))
    assert max(lags) <= 4  # two that are computed with, one in hand, one ahead


def test_resident_features_are_read_once_and_give_the_same_batches():
    maps = random_maps([3, 1, 5, 2], SHAPE)
    features, clips = Streamed(make_features(maps)), clips_of(maps)[:3]
    resident = keep_resident(features, clips, limit_bytes=9 * FRAME_BYTES)
    assert sorted(features.reads) == ["c0", "c1", "c2"]
    assert "c3" not in resident
    assert resident.dtype == np.float16
    assert resident.map_shape == SHAPE
    for got, expected in zip(
        in_batches_of_two(resident, clips).epoch(), in_batches_of_two(features, clips).epoch(), strict=True
    ):
        assert got.clips == expected.clips
        assert torch.equal(got.maps, expected.maps)
        assert torch.equal(got.lengths, expected.lengths)
        assert torch.equal(got.frame_seconds.nan_to_num(-1), expected.frame_seconds.nan_to_num(-1))
    part = np.empty((2, *SHAPE), np.float16)
    resident.read_into("c2", part, first_frame=1)
    np.testing.assert_array_equal(part, maps["c2"][1:3])


def test_features_over_the_limit_are_streamed():
    maps = random_maps([3, 1, 5], SHAPE)
    features = Streamed(make_features(maps))
    assert keep_resident(features, clips_of(maps), limit_bytes=9 * FRAME_BYTES - 1) is features
    assert not features.reads


def test_clips_without_features_are_left_out_and_named(caplog):
    maps = random_maps([1, 1], SHAPE)
    clips = [*clips_of(maps), make_clip("broken"), make_clip("gone")]
    with caplog.at_level(logging.WARNING):
        found = with_features(clips, make_features(maps))
    assert [clip.clip_id for clip in found] == ["c0", "c1"]
    assert caplog.messages == ["2 of 4 clips have no features and are left out: broken, gone"]


class BytesRead:
    """Counts what is read from files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.total = 0
        preadv, pread = os.preadv, os.pread
        monkeypatch.setattr(os, "preadv", lambda *args: self._count(preadv(*args)))
        monkeypatch.setattr(os, "pread", lambda *args: self._count(pread(*args)))

    def _count(self, result: Any) -> Any:
        self.total += result if isinstance(result, int) else len(result)
        return result


@pytest.mark.parametrize("container", FORMATS)
@pytest.mark.parametrize(
    "sampling", [{"window": 3}, {"crop_frames": 3, "shuffle_seed": 0}], ids=["windows", "crop"]
)
def test_windows_and_crops_read_their_own_rows_and_nothing_else(tmp_path, monkeypatch, container, sampling):
    lengths = {"a": 9, "b": 12, "c": 30}  # in chunks of 4 rows and shards of 32: c straddles two
    row_bytes = int(np.prod(MAP_SHAPE)) * 2
    with open_view(make_view(tmp_path, lengths, format=container)) as view:
        clips = [make_clip(clip_id) for clip_id in lengths]
        count = BytesRead(monkeypatch)
        for first_time in (True, False):  # the first time, whole chunks are read to verify them
            count.total = 0
            num_frames = 0
            for batch in Loader(view, clips, 2, 2, **sampling).epoch():
                num_frames += int(batch.lengths.sum())
                for clip, first, maps in zip(batch.clips, batch.first_frames, batch.maps, strict=True):
                    expected = clip_maps(clip.clip_id, lengths[clip.clip_id])[first : first + 3]
                    np.testing.assert_array_equal(maps.numpy(), expected)
            assert num_frames == (51 if "window" in sampling else 9)
            if first_time:
                assert num_frames * row_bytes < count.total <= 5 * num_frames * row_bytes
            else:
                assert count.total == num_frames * row_bytes


def test_statistics_are_those_of_the_given_clips_alone():
    maps = random_maps([3, 1, 5], SHAPE)
    maps["c2"][:] = np.nan
    maps["c0"][:, 1] = maps["c1"][:, 1] = 0.25
    result = channel_statistics(make_features(maps), clips_of(maps)[:2])
    for channel in range(SHAPE[0]):
        values = [float(v) for name in ("c0", "c1") for frame in maps[name] for v in frame[channel].flat]
        mean = sum(values) / len(values)
        std = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        assert result.mean[channel].item() == pytest.approx(mean, rel=1e-6)
        assert result.std[channel].item() == pytest.approx(std if channel != 1 else 1, rel=1e-6)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_statistics_of_pooled_maps_are_those_of_the_pooled_values(pooling):
    maps = random_maps([3, 5], SHAPE)
    result = channel_statistics(make_features(maps), clips_of(maps), pooling=pooling)
    values = np.concatenate(list(maps.values())).astype(np.float64)  # (8, C, H, W)
    pooled = values.max(axis=(2, 3)) if pooling == "max" else values.mean(axis=(2, 3))
    np.testing.assert_allclose(result.mean, pooled.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(result.std, pooled.std(axis=0), rtol=1e-6)


def test_statistics_of_values_with_a_large_mean_are_exact():
    values = (1000 + np.random.default_rng(0).standard_normal((20, 2, 3, 3))).astype(np.float32)
    features = make_features({"c0": values[:7], "c1": values[7:]})
    result = channel_statistics(features, [make_clip("c0"), make_clip("c1")])
    np.testing.assert_allclose(result.std, values.astype(np.float64).std(axis=(0, 2, 3)), rtol=1e-6)


def test_statistics_from_a_store_skip_rows_that_belong_to_no_clip(tmp_path, monkeypatch):
    lengths = {f"c{i}": 1 + i % 5 for i in range(40)} | {"long": 50}
    clips = [make_clip(clip_id) for clip_id in lengths if clip_id != "c3"]
    values = np.concatenate([clip_maps(clip.clip_id, lengths[clip.clip_id]) for clip in clips])
    monkeypatch.setattr(statistics, "_PIECE_BYTES", 7 * int(np.prod(MAP_SHAPE)) * 2)  # clips in pieces
    with open_view(make_view(tmp_path, lengths)) as view:
        results = [channel_statistics(view, clips, num_threads=threads) for threads in (1, 4)]
    for result in results:
        np.testing.assert_allclose(result.mean, values.astype(np.float64).mean(axis=(0, 2, 3)), rtol=1e-5)
        np.testing.assert_allclose(result.std, values.astype(np.float64).std(axis=(0, 2, 3)), rtol=1e-6)
    assert torch.equal(results[0].mean, results[1].mean)
    assert torch.equal(results[0].std, results[1].std)


@pytest.mark.gpu
@pytest.mark.parametrize("place", ["gpu", "memory", "store"])
def test_batches_on_a_gpu_are_those_on_the_cpu_however_late_it_computes(place):
    maps = random_maps([16, 5, 12, 7] * 50, (256, 7, 7))
    clips, device = clips_of(maps), torch.device("cuda")
    features = Streamed(make_features(maps))
    limits = {"gpu": (0, None), "memory": (1 << 40, 0), "store": (0, 0)}[place]
    kept = keep_resident(features, clips, limit_bytes=limits[0], device=device, device_limit_bytes=limits[1])
    assert (kept is features) == (place == "store")
    options = {"batch_size": 8, "num_threads": 4, "shuffle_seed": 0}
    sums, expected = [], []
    for epoch in range(2):
        for batch in Loader(kept, clips, **options, device=device).epoch(epoch):
            assert batch.maps.device.type == "cuda"
            torch.cuda._sleep(20_000_000)  # ten milliseconds behind the loader
            sums.append(batch.maps.double().sum())
        for batch in Loader(features, clips, **options).epoch(epoch):
            expected.append(batch.maps.double().sum())
    torch.testing.assert_close(torch.stack(sums).cpu(), torch.stack(expected))
