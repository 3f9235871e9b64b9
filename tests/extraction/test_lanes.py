"""The engine's parts: queues between lanes, batches under way, lanes' seconds."""

import threading

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.contract import Preprocessing
from pipeline.extraction import PlannedClip, Result, Target
from pipeline.extraction.compute import Computed, Packer
from pipeline.extraction.decode import ClipEnd, Piece
from pipeline.extraction.lanes import ByteQueue, Lane, make_lanes
from pipeline.extraction.runners import CpuRunner, Outputs, Wait
from tests.support.features import make_contract, make_layout
from tests.support.toy import make_clip

CONTRACT = make_contract(tap="tap")


def planned(number: int) -> PlannedClip:
    return PlannedClip(make_clip(f"c{number}"), number.to_bytes(16, "big"), "new", ("tap",))


class LateRunner(CpuRunner):
    """As a GPU does: computes a batch at once, and gives its rows when they are asked for, in order."""

    depth = 3
    under_way = most_under_way = 0

    def submit(self) -> Wait:
        wait = super().submit()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        number = self.num_submitted = getattr(self, "num_submitted", 0) + 1

        def collect() -> Outputs[np.ndarray]:
            self.under_way -= 1
            assert number == self.num_submitted - self.under_way  # the oldest
            return wait()

        return collect


def make_runner(kind: type[CpuRunner], *, batch_size: int, crop: int = 1) -> CpuRunner:
    """Its rows are the red of a frame's first pixel."""
    batch = torch.zeros(batch_size, 3, crop, crop, dtype=torch.uint8)
    options = Preprocessing(resize=None, crop=crop)

    def forward(pixels: torch.Tensor) -> Outputs[torch.Tensor]:
        reds = pixels[:, 0, 0, 0].float()
        return Outputs({"tap": reds.view(-1, 1, 1, 1)}, {"tap": reds})

    return kind(forward, batch, options, make_lanes(num_decoders=1))


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 7)), max_size=20),
    batch_size=st.integers(1, 5),
    kind=st.sampled_from([CpuRunner, LateRunner]),
)
def test_every_frame_comes_out_once_in_order_with_its_own_row(
    pieces: list[tuple[int, int]], batch_size: int, kind: type[CpuRunner]
) -> None:
    runner = make_runner(kind, batch_size=batch_size)
    packer = Packer(runner, [Target(CONTRACT, make_layout(CONTRACT))])
    clips = [planned(number) for number in range(4)]
    out: list[Computed | ClipEnd] = []
    sent: dict[bytes, list[int]] = {clip.key: [] for clip in clips}
    value = 0
    for number, count in pieces:
        values = list(range(value, value + count))
        value = (value + count) % 200
        sent[clips[number].key] += values
        pixels = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 1, 3)
        out += packer.add(Piece(clips[number], pixels, np.array(values, dtype=np.float64)))
    for clip in clips:
        out += packer.add(ClipEnd(clip, None))
    out += packer.finish()
    num_frames = sum(count for _, count in pieces)
    assert packer.num_batches == -(-num_frames // batch_size)
    ended = set()
    received: dict[bytes, list[int]] = {clip.key: [] for clip in clips}
    for item in out:
        if isinstance(item, ClipEnd):
            ended.add(item.clip.key)
            continue
        key = item.segment.clip.key
        assert key not in ended
        rows = item.outputs.rows["tap"].ravel().tolist()
        assert rows == item.outputs.peaks["tap"].tolist()
        assert rows == item.segment.frame_seconds.tolist()
        received[key] += rows
    assert received == sent
    assert ended == set(sent)
    if isinstance(runner, LateRunner):
        assert runner.under_way == 0
        assert runner.most_under_way == min(3, packer.num_batches)


def test_a_queue_holds_no_more_bytes_than_its_limit_and_wakes_who_waits() -> None:
    producer, consumer = Lane(), Lane()
    queue: ByteQueue[int] = ByteQueue(100, producer=producer, consumer=consumer)
    assert queue.put(1, size_bytes=60)
    assert queue.put(2, size_bytes=40)
    started, passed = threading.Event(), threading.Event()

    def put() -> None:
        started.set()
        queue.put(3, size_bytes=1000)  # more than the limit: passes alone
        passed.set()

    thread = threading.Thread(target=put)
    thread.start()
    started.wait()
    assert queue.get() == 1
    assert not passed.is_set()
    assert queue.get() == 2
    passed.wait()
    thread.join()
    assert queue.get() == 3
    assert producer.blocked_seconds > 0


def test_no_producer_of_many_waits_for_ever_whatever_the_sizes() -> None:
    queue: ByteQueue[int] = ByteQueue(100, producer=Lane(), consumer=Lane())
    sizes = np.random.default_rng(0).integers(0, 130, (8, 100)).tolist()

    def put(number: int) -> None:
        for place, size in enumerate(sizes[number]):
            assert queue.put(100 * number + place, size_bytes=size)

    threads = [threading.Thread(target=put, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    received = [queue.get() for _ in range(800)]
    for thread in threads:
        thread.join()
    assert sorted(received) == list(range(800))
    for number in range(8):
        assert [item for item in received if item // 100 == number] == sorted(
            item for item in received if item // 100 == number
        )


def test_a_closed_queue_gives_what_is_in_it_then_nothing_and_takes_nothing() -> None:
    queue: ByteQueue[int] = ByteQueue(10, producer=Lane(), consumer=Lane())
    queue.put(1, size_bytes=10)
    refused: list[bool] = []
    thread = threading.Thread(target=lambda: refused.append(queue.put(2, size_bytes=10)))
    thread.start()
    queue.close()
    thread.join()
    assert refused == [False]
    assert (queue.get(), queue.get()) == (1, None)


def test_the_report_names_the_busiest_lane_relative_to_its_threads() -> None:
    result = Result(seconds=10.0, lanes=make_lanes(num_decoders=4))
    result.lanes["decode"].add(busy=20.0, blocked=10.0)
    result.lanes["compute"].add(busy=8.0, starved=1.0)
    report = result.lane_report()
    assert report["limited_by"] == "compute"
    assert report["lanes"]["decode"] == {"threads": 4, "busy": 0.5, "starved": 0.0, "blocked": 0.25}
    assert report["lanes"]["compute"]["busy"] == 0.8
    twice = Result()
    twice.add(result)
    twice.add(result)
    assert twice.lane_report() == report
    assert twice.seconds == 20.0
