"""Extraction on a Dask cluster: any number of workers compute the plan, in batches of clips.

Workers write shards to the journal that all share; only clips, counts and errors cross the network. The
client holds the journal's lock, and only the client publishes.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from distributed import Client, LocalCluster

from pipeline.errors import ConfigError
from pipeline.extraction.cluster import dask_worker
from pipeline.extraction.cluster.dask_client import WorkerPool
from pipeline.extraction.cluster.dask_worker import TaskContext
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from pipeline.extraction.targets import Target
from pipeline.extraction.write import OnWork
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import DaskConfig, Machine
from pipeline.store import Journal
from pipeline.system.files import write_atomically
from pipeline.system.own_code import OwnCode


def compute_on_workers(
    planned: Sequence[PlannedClip],
    *,
    root: Path,
    targets: Sequence[Target],
    weights: Path,
    own: OwnCode | None = None,
    journal: Journal,
    config: ExtractConfig,
    machine: Machine,
    on_progress: OnWork = lambda _clips, _frames, _bytes: None,
) -> Result:
    """Compute the planned clips into the journal, as `compute_clips` does, on the workers of `machine.dask`.

    Every worker must see `weights`, `root` and the journal under the same paths; one that does not is refused
    with a warning. When a worker dies, its clips are tried again in ever smaller batches, and a clip that
    kills its worker alone is quarantined. A task takes about `machine.commit_seconds`.

    Raises ConfigError when no scheduler answers or every worker is refused, StoreError when features that a
    worker has written do not appear here, ValueError without `machine.dask`, and what a task raised.
    """
    if machine.dask is None:
        raise ValueError("machine.dask names no workers.")
    forward_digest = targets[0].contract.forward_digest()
    context = TaskContext(
        name=f"framecache-{forward_digest[:16]}-{secrets.token_hex(4)}",
        root=root.absolute(),
        weights=weights.absolute(),
        own=own and replace(own, path=own.path and own.path.absolute()),
        journal=journal.path.absolute(),
        targets=tuple(targets),
        config=config,
        machine=machine,
        sources=_some_sources(root.absolute(), planned),
    )
    started = time.monotonic()
    with _token(context), _connected(machine.dask) as client:
        pool = WorkerPool(client, context, planned, journal, on_progress)
        result = pool.work()
    result.setup_seconds = pool.started - started
    result.seconds = time.monotonic() - pool.started
    return result


def _some_sources(root: Path, planned: Sequence[PlannedClip]) -> dict[Path, int | None]:
    paths = [root / source for clip in planned[:8] for source in clip.clip.sources[:8]]
    return {path: path.stat().st_size if path.is_file() else None for path in paths if path.exists()}


@contextlib.contextmanager
def _token(context: TaskContext) -> Iterator[None]:
    for path in context.token.parent.glob(f"{context.name.rpartition('-')[0]}-*.run"):
        path.unlink()  # of a client that was killed: this one holds the lock
    write_atomically(context.token, b"")
    try:
        yield
    finally:
        context.token.unlink(missing_ok=True)


@contextlib.contextmanager
def _connected(config: DaskConfig) -> Iterator[Client]:
    """A client of the scheduler, or of a cluster of processes on this machine that ends with the block."""
    with contextlib.ExitStack() as stack:
        address = config.scheduler
        if config.local:
            cluster = LocalCluster(
                n_workers=config.local,
                threads_per_worker=max(1, torch.get_num_threads() // config.local),
                memory_limit=0,  # else Dask pauses what it takes for a leak
                dashboard_address="127.0.0.1:0",
                preload=dask_worker.__name__,
            )
            address = stack.enter_context(cluster).scheduler_address
        try:
            client = stack.enter_context(Client(address, set_as_default=False))
        except OSError:
            raise ConfigError(
                f"No Dask scheduler answers at {address}. Start one, or correct the address."
            ) from None
        yield client
