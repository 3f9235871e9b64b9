"""Where batches are computed: runners, to which batches of one fixed size are submitted.

A runner owns the batch, (B, 3, h, w) uint8 on its device. `prepare` makes frames fit it, `submit` computes
what it holds, and what `submit` gives back waits for the rows, by tap, as they are stored. On a GPU up
to `depth` batches are under way, so that copying in, computing and copying back overlap.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.backbone import Backbone, preprocess
from pipeline.contract import FeatureContract, Preprocessing
from pipeline.extraction.config import Target
from pipeline.extraction.lanes import LaneName, Lanes

# {tap: (B, C, h, w) as stored}, and {PEAKS + tap: (B,) float32}: see `row_peaks`.
Rows = Mapping[str, np.ndarray]
PEAKS = "peaks of "
Forward = Callable[[Tensor], dict[str, Tensor]]


class Runner(Protocol):
    batch: Tensor
    depth: int  # batches that may be under way

    def prepare(self, pixels: Tensor) -> Tensor:
        """(T, H, W, 3) uint8 on the host -> (T, 3, h, w) uint8 on the device.

        Raises DecodeError for frames that do not cover the crop.
        """

    def submit(self) -> Callable[[], Rows]:
        """Compute the batch, which may be filled again at once; the call that waits for its rows."""


def make_runner(
    backbone: Backbone,
    targets: Sequence[Target],
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    lanes: Lanes,
) -> Runner:
    """The runner for the backbone's device. Compiles and captures now, before other threads start."""
    contracts = [target.contract for target in targets]
    for contract in contracts:
        assert (contract.precision, contract.backend) == (backbone.precision, backbone.backend), contract

    def forward(batch: Tensor) -> dict[str, Tensor]:
        maps = backbone(batch)
        rows = {}
        for contract in contracts:
            values = pooled(maps[contract.tap], contract)
            rows[contract.tap] = cast(values, contract)
            rows[PEAKS + contract.tap] = row_peaks(values)
        return rows

    shape = (batch_size, 3, *preprocessing.crop_size)
    batch = torch.empty(
        shape, dtype=torch.uint8, device=backbone.device, memory_format=torch.channels_last
    ).zero_()
    if batch.device.type == "cuda":
        torch.cuda.set_device(batch.device)  # streams and graphs belong to the current device
        return CudaRunner(forward, batch, preprocessing, lanes)
    if backbone.backend == "inductor":
        forward(batch)
    return CpuRunner(forward, batch, preprocessing, lanes)


def pooled(maps: Tensor, contract: FeatureContract) -> Tensor:
    """(B, C, h, w) in the network's precision -> what is stored of it, yet to be cast; means in float32."""
    if contract.pooling == "avg":
        return maps.float().mean(dim=(2, 3), keepdim=True)
    if contract.pooling == "max":
        return maps.amax(dim=(2, 3), keepdim=True)
    return maps


def cast(maps: Tensor, contract: FeatureContract) -> Tensor:
    """Pooled maps in the stored dtype, in C order."""
    return maps.to(getattr(torch, contract.dtype), memory_format=torch.contiguous_format)


def row_peaks(maps: Tensor) -> Tensor:
    """The largest magnitude (B,) float32 of each of the maps (B, C, h, w), NaN if it has a NaN."""
    dims = (1, 2, 3)
    return torch.maximum(maps.amax(dims), -maps.amin(dims)).float()


class CpuRunner:
    """Computes on the calling thread: what is submitted is done."""

    depth = 1

    def __init__(self, forward: Forward, batch: Tensor, preprocessing: Preprocessing, lanes: Lanes) -> None:
        self.batch = batch
        self._forward = forward
        self._preprocessing = preprocessing
        self._lanes = lanes

    def prepare(self, pixels: Tensor) -> Tensor:
        with self._lanes["compute"].busy():
            return preprocess(pixels, self._preprocessing)

    def submit(self) -> Callable[[], Rows]:
        with self._lanes["compute"].busy():
            rows = {tap: maps.numpy() for tap, maps in self._forward(self.batch).items()}
        return lambda: rows


class CudaRunner:
    """Computes on a GPU by one captured graph; copies run beside it on streams of their own.

    Nothing waits for the whole device. Pinned memory comes from torch's cache, which hands a block out
    again only when the copies from and to it are done: after a few batches nothing is allocated.
    """

    depth = 3

    def __init__(self, forward: Forward, batch: Tensor, preprocessing: Preprocessing, lanes: Lanes) -> None:
        self.batch = batch
        self._preprocessing = preprocessing
        self._lanes = lanes
        self._timings: list[tuple[LaneName, torch.cuda.Event, torch.cuda.Event]] = []
        self._in = torch.cuda.Stream(batch.device)
        self._compute = torch.cuda.current_stream(batch.device)
        self._out = torch.cuda.Stream(batch.device)
        # cuDNN and inductor prepare themselves in the first calls, which can't be captured.
        self._in.wait_stream(self._compute)
        with torch.cuda.stream(self._in):
            for _ in range(3):
                forward(batch)
        self._compute.wait_stream(self._in)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._maps = forward(batch)

    def prepare(self, pixels: Tensor) -> Tensor:
        with torch.cuda.stream(self._in), self._timed("to_device", self._in):
            frames = pixels.to(self.batch.device, non_blocking=True)
        self._compute.wait_stream(self._in)
        frames.record_stream(self._compute)
        with self._timed("compute", self._compute):
            return preprocess(frames, self._preprocessing)

    def submit(self) -> Callable[[], Rows]:
        with self._timed("compute", self._compute):
            self._graph.replay()
            # The next replay writes to the same place.
            maps = {tap: values.clone() for tap, values in self._maps.items()}
        self._out.wait_stream(self._compute)
        with torch.cuda.stream(self._out), self._timed("to_host", self._out):
            rows = {}
            for tap, values in maps.items():
                rows[tap] = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
                rows[tap].copy_(values, non_blocking=True)
                values.record_stream(self._out)
        timings, self._timings = self._timings, []

        def collect() -> Rows:
            timings[-1][2].synchronize()  # the end of the copy back, behind everything else of this batch
            for lane, start, end in timings:
                self._lanes[lane].add(busy=start.elapsed_time(end) / 1000)
            return {tap: values.numpy() for tap, values in rows.items()}

        return collect

    @contextmanager
    def _timed(self, lane: LaneName, stream: torch.cuda.Stream) -> Iterator[None]:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        yield
        end.record(stream)
        self._timings.append((lane, start, end))
