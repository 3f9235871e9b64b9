"""Extraction on a Dask cluster: the engine's plan in batches of clips, computed by any number of workers.

Workers write shards to the journal that all share; only clips, counts and errors cross the wire. The
client holds the journal's lock, and it alone publishes.
"""

import contextlib
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from distributed import Client, LocalCluster

from pipeline.errors import ConfigError
from pipeline.extraction.cluster import dask_worker
from pipeline.extraction.cluster.dask_client import WorkerPool
from pipeline.extraction.cluster.dask_worker import Job
from pipeline.extraction.config import DaskConfig, ExtractConfig, Target
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from pipeline.extraction.write import OnProgress
from pipeline.store import Journal
from pipeline.system.files import write_atomically


def run(
    planned: Sequence[PlannedClip],
    *,
    root: Path,
    targets: Sequence[Target],
    weights: Path,
    journal: Journal,
    config: ExtractConfig,
    on_progress: OnProgress = lambda _clips, _frames, _bytes: None,
) -> Result:
    """Compute the planned clips into the journal, as `engine.run` does, on the workers of `config.dask`.

    `weights`, `root` and the journal must be the same files for every worker, under the same paths; one
    that sees them otherwise is refused with a warning. A worker that dies is replaced and its clips are
    tried again, in ever smaller batches; a clip that kills its worker alone is quarantined.
    `config.store.commit_seconds` is also about the length of a task.

    Raises ConfigError when there is no scheduler or every worker is refused; what a task raised; and
    StoreError when features that a worker has written do not appear here.
    """
    assert config.dask
    forward_digest = targets[0].contract.forward_digest()
    job = Job(
        name=f"framecache-{forward_digest[:16]}-{secrets.token_hex(4)}",
        root=root.absolute(),
        weights=weights.absolute(),
        journal=journal.path.absolute(),
        targets=tuple(targets),
        config=config,
        sources=_some_sources(root.absolute(), planned),
    )
    started = time.monotonic()
    with _token(job), _connected(config.dask) as client:
        pool = WorkerPool(client, job, planned, journal, on_progress)
        result = pool.work()
    result.setup_seconds = pool.started - started
    result.seconds = time.monotonic() - pool.started
    return result


def _some_sources(root: Path, planned: Sequence[PlannedClip]) -> dict[Path, int | None]:
    paths = [root / source for clip in planned[:8] for source in clip.clip.sources[:8]]
    return {path: path.stat().st_size if path.is_file() else None for path in paths if path.exists()}


@contextlib.contextmanager
def _token(job: Job) -> Iterator[None]:
    for path in job.token.parent.glob(f"{job.name.rpartition('-')[0]}-*.run"):
        path.unlink()  # of a client that was killed: this one holds the lock
    write_atomically(job.token, b"")
    try:
        yield
    finally:
        job.token.unlink(missing_ok=True)


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
                f"extract.dask: no scheduler answers at {address}. Start one, or correct the address."
            ) from None
        yield client
