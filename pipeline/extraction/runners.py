"""Runners compute batches of one fixed size, on a CPU or a GPU.

A runner owns one batch, (B, 3, h, w) or, of windows, (B, 3, T, h, w) uint8 on its device. `prepare` makes
frames that fit into it, `submit` starts to compute it and returns a function that waits for the outputs. On a
GPU up to `depth` batches are under way, so that copying in, computing and copying back overlap. A frame's
view matters to `prepare` alone: rows are by tap.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.backbone import Backbone, preprocess
from pipeline.contract import FeatureContract, FrameView, Pooling, Preprocessing
from pipeline.extraction.lanes import LaneName, Lanes
from pipeline.extraction.targets import Target

log = logging.getLogger(__name__)

Array = TypeVar("Array", Tensor, np.ndarray)
Other = TypeVar("Other", Tensor, np.ndarray)


@dataclass(frozen=True)
class Outputs(Generic[Array]):
    """The rows of a batch, or of a part of one, and the peak of each row."""

    rows: Mapping[str, Array]  # by name: (B, C, h, w) in the stored dtype
    peaks: Mapping[str, Array]  # by name: (B,) float32, see `map_peaks`

    def map(self, function: Callable[[Array], Other]) -> "Outputs[Other]":
        """The outputs with `function` applied to each tensor or array."""
        return Outputs(
            {name: function(rows) for name, rows in self.rows.items()},
            {name: function(peaks) for name, peaks in self.peaks.items()},
        )


Forward = Callable[[Tensor], Outputs[Tensor]]
Wait = Callable[[], Outputs[np.ndarray]]


class Runner(Protocol):
    """Computes batches on one device."""

    batch: Tensor  # (B, 3, h, w) or (B, 3, T, h, w) uint8 on the device
    depth: int  # batches that may be under way

    def prepare(self, pixels: Tensor, views: Sequence[FrameView]) -> list[Tensor]:
        """(T, H, W, 3) uint8 on the host -> for each view (T, 3, h, w) uint8 on the device.

        Raises ValueError for frames that do not cover the crop.
        """

    def submit(self) -> Wait:
        """Start to compute the batch, which may then be filled again. Returns what waits for the outputs."""


def make_runner(
    backbone: Backbone,
    targets: Sequence[Target],
    *,
    preprocessing: Preprocessing,
    batch_size: int,
    lanes: Lanes,
) -> Runner:
    """The runner for the backbone's device. Compiles and captures now, before other threads start.

    Raises ValueError for a contract of another precision or backend than the backbone's.
    """
    contracts = list({target.contract.tap: target.contract for target in targets}.values())  # one a tap
    for contract in contracts:
        if (contract.precision, contract.backend) != (backbone.precision, backbone.backend):
            raise ValueError(f"The backbone is {backbone.precision}, {backbone.backend}; not so {contract}.")

    def forward(batch: Tensor) -> Outputs[Tensor]:
        maps = backbone(batch)
        values = {contract.tap: pooled(maps[contract.tap], contract) for contract in contracts}
        return Outputs(
            {contract.tap: as_stored(values[contract.tap], contract) for contract in contracts},
            {tap: map_peaks(value) for tap, value in values.items()},
        )

    windows = contracts[0].windows
    shape = (batch_size, 3, *((windows.frames,) if windows else ()), *preprocessing.crop_size)
    batch = torch.zeros(shape, dtype=torch.uint8, device=backbone.device)
    if not windows:
        batch = batch.contiguous(memory_format=torch.channels_last)
    if batch.device.type == "cuda":
        torch.cuda.set_device(batch.device)  # streams and graphs belong to the current device
        return CudaRunner(forward, batch, preprocessing, lanes)
    if backbone.backend == "inductor":
        forward(batch)
    return CpuRunner(forward, batch, preprocessing, lanes)


# (B, C, h, w) -> (B, C, h, w) or (B, C, 1, 1); means are float32.
POOLINGS: dict[Pooling, Callable[[Tensor], Tensor]] = {
    "none": lambda maps: maps,
    "avg": lambda maps: maps.float().mean(dim=(2, 3), keepdim=True),
    "max": lambda maps: maps.amax(dim=(2, 3), keepdim=True),
    "cls": lambda maps: maps,  # the network has the token alone
}


def pooled(maps: Tensor, contract: FeatureContract) -> Tensor:
    """Maps (B, C, h, w) in the network's precision, pooled as the contract says and not yet `as_stored`."""
    return POOLINGS[contract.pooling](maps)


def as_stored(maps: Tensor, contract: FeatureContract) -> Tensor:
    """Pooled maps (B, C, h, w) in the stored dtype, in C order."""
    return maps.to(getattr(torch, contract.dtype), memory_format=torch.contiguous_format)


def map_peaks(maps: Tensor) -> Tensor:
    """The largest magnitude (B,) float32 of each of the maps (B, C, h, w); NaN for a map with a NaN."""
    dims = (1, 2, 3)
    return torch.maximum(maps.amax(dims), -maps.amin(dims)).float()


class CpuRunner:
    """Computes on the calling thread: `submit` returns when the batch is computed."""

    depth = 1

    def __init__(self, forward: Forward, batch: Tensor, preprocessing: Preprocessing, lanes: Lanes) -> None:
        self.batch = batch
        self._forward = forward
        self._preprocessing = preprocessing
        self._lanes = lanes

    def prepare(self, pixels: Tensor, views: Sequence[FrameView]) -> list[Tensor]:
        """As `Runner` says."""
        with self._lanes["compute"].busy():
            return [preprocess(pixels, self._preprocessing, view) for view in views]

    def submit(self) -> Wait:
        """As `Runner` says."""
        with self._lanes["compute"].busy():
            outputs = self._forward(self.batch).map(Tensor.numpy)
        return lambda: outputs


class CudaRunner:
    """Computes on a GPU, by one captured graph where it can. Copies run beside it, on streams of their own.

    Nothing waits for the whole device. Pinned memory comes from torch's cache, which hands a block out
    again only when the copies from and to it are done. After a few batches nothing more is allocated.
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
        self._run = _captured(forward, batch)

    def prepare(self, pixels: Tensor, views: Sequence[FrameView]) -> list[Tensor]:
        """As `Runner` says."""
        with torch.cuda.stream(self._in), self._timed("to_device", self._in):
            frames = pixels.to(self.batch.device, non_blocking=True)
        self._compute.wait_stream(self._in)
        frames.record_stream(self._compute)
        with self._timed("compute", self._compute):
            return [preprocess(frames, self._preprocessing, view) for view in views]

    def submit(self) -> Wait:
        """As `Runner` says."""
        with self._timed("compute", self._compute):
            outputs = self._run()
        self._out.wait_stream(self._compute)
        with torch.cuda.stream(self._out), self._timed("to_host", self._out):
            copies = outputs.map(self._copy_to_host)
        timings, self._timings = self._timings, []

        def collect() -> Outputs[np.ndarray]:
            timings[-1][2].synchronize()  # the end of the copy back, behind everything else of this batch
            for lane, start, end in timings:
                self._lanes[lane].add(busy=start.elapsed_time(end) / 1000)
            return copies.map(Tensor.numpy)

        return collect

    def _copy_to_host(self, values: Tensor) -> Tensor:
        """Start to copy to pinned memory, on the stream that leads out."""
        copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        copy.copy_(values, non_blocking=True)
        values.record_stream(self._out)
        return copy

    @contextmanager
    def _timed(self, lane: LaneName, stream: torch.cuda.Stream) -> Iterator[None]:
        # A thread that waits for a blocking event sleeps, and leaves its core to the decoders.
        start, end = (torch.cuda.Event(enable_timing=True, blocking=True) for _ in range(2))
        start.record(stream)
        yield
        end.record(stream)
        self._timings.append((lane, start, end))


def _captured(forward: Forward, batch: Tensor) -> Callable[[], Outputs[Tensor]]:
    """What computes the batch as one CUDA graph; kernel by kernel for a network that can't be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            outputs = forward(batch)
    except RuntimeError as error:  # MViT, for one, copies indices from the host's memory
        log.info("The network can't be captured as a CUDA graph, and runs kernel by kernel: %s", error)
        torch.cuda.synchronize(batch.device)
        return lambda: forward(batch)

    def replay() -> Outputs[Tensor]:
        graph.replay()
        return outputs.map(Tensor.clone)  # the next replay writes to the same place

    return replay
