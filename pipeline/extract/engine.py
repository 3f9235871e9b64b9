"""The engine: decode, compute and write side by side.

Decoder threads turn clips into frames; the compute loop, on the calling thread, packs frames of any
clips into batches of one fixed size; a writer thread appends the maps to shards. Bounded queues lie
between them. What is committed to the journal is never computed again.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from pipeline.backbone import Backbone
from pipeline.extract.compute import ClipEnd, Compute
from pipeline.extract.config import ExtractConfig, Target
from pipeline.extract.decode import decoding
from pipeline.extract.plan import PlannedClip
from pipeline.extract.write import Result, Writer
from pipeline.store import Journal, ShardWriter, committing


def run(
    planned: Sequence[PlannedClip],
    *,
    root: Path,
    targets: Sequence[Target],
    backbone: Backbone,
    device: torch.device,
    journal: Journal,
    config: ExtractConfig,
    on_progress: Callable[[int, int], None] = lambda _clips, _frames: None,
) -> Result:
    """Compute the planned clips into the journal.

    `on_progress(clips, frames)` is called with what was finished since the last call. The caller
    holds the journal's lock of the forward contract.
    """
    result = Result()
    started = time.monotonic()
    writers = {
        t.contract.tap: ShardWriter(
            journal.directory(t.contract, t.layout),
            contract=t.contract,
            layout=t.layout,
            commit_seconds=config.store.commit_seconds,
        )
        for t in targets
    }
    num_decoders = config.num_decoders or default_num_decoders(device)
    batch_size = config.batch_size or (256 if device.type == "cuda" else 32)
    compute = Compute(backbone, targets, batch_size=batch_size, preprocessing=config.preprocessing)
    with (
        committing(*writers.values()),
        Writer(writers, journal, targets[0].contract.forward_digest(), result, on_progress) as writer,
        decoding(planned, root=root, sampling=config.sampling, num_threads=num_decoders) as decoded,
    ):
        for piece in decoded:
            if piece.frames is None:
                compute.end(ClipEnd(piece.clip, piece.error))
            else:
                compute.add(piece.clip, piece.frames)
            writer.put(compute.ready())
        compute.flush()
        writer.put(compute.ready())
    result.num_batches = compute.num_batches
    result.seconds = time.monotonic() - started
    return result


def default_num_decoders(device: torch.device) -> int:
    """On a CPU the network wants the cores; beside a GPU all of them may decode."""
    cores = torch.get_num_threads()
    return cores if device.type == "cuda" else max(1, cores // 2)
