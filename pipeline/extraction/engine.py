"""The engine: decode, compute and write side by side.

Decoder threads turn clips into frames; the compute loop, on the calling thread, packs each view of the
frames of any clips into batches of one fixed size; writer threads append the maps to shards. Between them are
queues with a limit in bytes. What is committed to the journal is never computed again.
"""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from pipeline.backbone import Backbone
from pipeline.extraction.compute import Packer
from pipeline.extraction.decode import decoding
from pipeline.extraction.lanes import make_lanes
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from pipeline.extraction.runners import make_runner
from pipeline.extraction.targets import Target
from pipeline.extraction.write import OnWork, Writers
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.store import DigestCache, Journal, ShardWriter
from pipeline.system.supervisor import Notes

_UNHEARD = Notes()


def compute_clips(
    planned: Sequence[PlannedClip],
    *,
    root: Path,
    targets: Sequence[Target],
    backbone: Backbone,
    journal: Journal,
    config: ExtractConfig,
    machine: Machine = Machine(),
    on_progress: OnWork = lambda _clips, _frames, _bytes: None,
    notes: Notes = _UNHEARD,
    digests: DigestCache | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Compute the planned clips into the journal, on the backbone's device; `machine.device` has no effect.

    `on_progress(clips, frames, bytes)` is called on writers' threads, on one at a time, with what was
    finished since the last call. `notes` tell a supervisor of each clip. With `digests`, a clip whose
    sources were changed since the plan fails, and nothing of it is kept. The caller holds the journal's
    lock of the forward contract. Clips that are complete are committed however the run ends: by an error,
    KeyboardInterrupt, or `stop` being set.

    Raises DiskFullError, and whatever decoding or computing raises that is no fault of one clip's source.
    """
    started = time.monotonic()
    device = backbone.device
    frame_bytes = sum(target.layout.row_bytes for target in targets)
    lanes = make_lanes(
        num_decoders=machine.num_decoders or default_num_decoders(device),
        num_writers=machine.num_writers or default_num_writers(device, frame_bytes=frame_bytes),
    )
    result = Result(lanes=lanes)
    runner = make_runner(
        backbone,
        targets,
        preprocessing=config.known_preprocessing,
        batch_size=machine.batch_size or default_batch_size(device),
        lanes=lanes,
    )
    result.setup_seconds = time.monotonic() - started
    shards = [
        {
            target.contract.name: ShardWriter(
                journal.directory(target.contract, target.layout),
                contract=target.contract,
                layout=target.layout,
                commit_seconds=machine.commit_seconds,
            )
            for target in targets
        }
        for _ in range(lanes["write"].num_threads)
    ]
    packer = Packer(runner, targets)
    with (
        notes.judged(machine.stall_seconds),
        Writers(shards, targets, journal, result, on_progress, notes) as writers,
        decoding(
            planned,
            root=root,
            config=config,
            lanes=lanes,
            pinned=device.type == "cuda",
            notes=notes,
            digests=digests,
        ) as decoded,
    ):
        for item in decoded:
            if stop and stop.is_set():
                break
            writers.put(packer.add(item))
            notes.computed()
        else:
            writers.put(packer.finish())
    result.num_batches = packer.num_batches
    result.seconds = time.monotonic() - started - result.setup_seconds
    return result


def default_batch_size(device: torch.device) -> int:
    """Frames of a batch where `Machine` leaves it open."""
    return 256 if device.type == "cuda" else 32


def default_num_decoders(device: torch.device) -> int:
    """Decoder threads where `Machine` leaves it open: on a CPU half of the cores, beside a GPU most of them.

    An eighth is left to the thread that feeds the GPU and to the writers.
    """
    cores = torch.get_num_threads()
    return cores - cores // 8 if device.type == "cuda" else max(1, cores // 2)


def default_num_writers(device: torch.device, *, frame_bytes: int) -> int:
    """Writer threads where `Machine` leaves it open: beside a GPU one for each 32 KiB of a frame's features.

    At most 4; one on a CPU, where the network is slower than a disk.
    """
    return min(4, 1 + frame_bytes // (32 << 10)) if device.type == "cuda" else 1
