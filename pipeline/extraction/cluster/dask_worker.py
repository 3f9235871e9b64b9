"""A Dask worker's part of an extraction: it is checked once, then computes batches of clips into the journal.

Also the preload of the worker processes that framecache starts itself (`dask_setup`).
"""

import atexit
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from distributed import Nanny, Worker, get_worker

from pipeline.backbone import Backbone
from pipeline.backbone.weights import load_weights
from pipeline.contract import REVISION
from pipeline.errors import ConfigError, PipelineError, os_error_text
from pipeline.extraction.config import ExtractConfig, Target
from pipeline.extraction.engine import run
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from pipeline.store import Journal
from pipeline.system.devices import resolve_device
from pipeline.system.memory import is_out_of_memory, keep_freed_memory

PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """What the tasks of one extraction share; paths are absolute."""

    name: str  # unique; topic of its progress events
    root: Path
    weights: Path
    journal: Path
    targets: tuple[Target, ...]
    config: ExtractConfig
    sources: Mapping[Path, int | None]  # a few, by which a worker knows the corpus: bytes, None for a folder

    @property
    def token(self) -> Path:
        """The file by which a worker knows the journal."""
        return self.journal / "locks" / f"{self.name}.run"


@dataclass
class _State:
    """What a worker process keeps from task to task of a job."""

    job: Job
    backbone: Backbone
    device: torch.device
    stop: threading.Event


_states: dict[str, _State] = {}  # of one job: a new one takes the place of the last


def check(job: Job) -> str | None:
    """Why this worker can't take part, naming the host and the path; None when it can."""
    try:
        _check_files(job)
        _prepare(job)
        with Journal(job.journal).writing(job.targets[0].contract.forward_digest()):
            pass
    except (PipelineError, OSError) as error:
        return f"{socket.gethostname()} ({get_worker().address}): {error}"
    return None


def _check_files(job: Job) -> None:
    """Raises ConfigError naming what is not the client's."""
    if job.targets[0].contract.revision != REVISION:
        raise ConfigError("Its framecache is another revision. Install the client's on every worker.")
    if not job.token.exists():
        raise ConfigError(
            f"It does not see the client's journal at {job.journal}. Put the journal where all see it under"
            " the same path (FRAMECACHE_JOURNAL)."
        )
    for path, size_bytes in job.sources.items():
        if not path.exists() or (size_bytes is not None and path.stat().st_size != size_bytes):
            found = f"is not the client's {path.name}" if path.exists() else f"has no {path.name}"
            raise ConfigError(
                f"Its {job.root} {found}. Put the corpus where all see it under the same path (corpus.root)."
            )


def _prepare(job: Job) -> _State:
    """The network on this worker's device, made once a job.

    Raises ConfigError when its weights are not the client's.
    """
    keep_freed_memory()
    torch.set_num_threads(get_worker().state.nthreads)  # Dask's processes start with one
    if state := _states.get(job.name):
        return state
    weights = load_weights(job.weights)
    contract = job.targets[0].contract
    if weights.sha256 != contract.weights_sha256:
        raise ConfigError(
            f"Its {job.weights} has another sha256 than the client's ({weights.sha256[:12]}...). Put the"
            " weights where all see them under the same path."
        )
    device = resolve_device(job.config.device)
    backbone = Backbone(
        weights,
        taps=job.config.taps,
        device=device,
        precision=job.config.precision,
        backend=job.config.backend,
    )
    _states.clear()
    _states[job.name] = _State(job, backbone, device, threading.Event())
    return _states[job.name]


def extract(job: Job, task: int, planned: Sequence[PlannedClip]) -> Result:
    """Compute clips into the journal; what was committed stays when the worker dies in the middle.

    Raises PipelineErrors as they are, anything else as a RuntimeError with the host and the traceback:
    not every exception survives the wire.
    """
    state = _prepare(job)
    journal = Journal(job.journal)
    try:
        with journal.writing(job.targets[0].contract.forward_digest()):
            return run(
                planned,
                root=job.root,
                targets=job.targets,
                backbone=state.backbone,
                device=state.device,
                journal=journal,
                config=job.config,
                on_progress=_Progress(get_worker(), job.name, task),
                stop=state.stop,
            )
    except PipelineError:
        raise
    except Exception as error:
        where = f"On {socket.gethostname()}"
        if is_out_of_memory(error):
            raise PipelineError(f"{where}: out of memory: {error}. Lower extract.batch_size.") from None
        if isinstance(error, OSError) and (text := os_error_text(error)):
            raise PipelineError(f"{where}: {text}") from None
        raise RuntimeError(f"{where}: {traceback.format_exc()}") from None


class _Progress:
    """Tells the client how far a task is, from time to time."""

    def __init__(self, worker: Worker, topic: str, task: int) -> None:
        self._worker = worker
        self._topic = topic
        self._task = task
        self._done = [0, 0, 0]  # clips, frames, bytes
        self._told = 0.0

    def __call__(self, *new: int) -> None:
        self._done = [sum(pair) for pair in zip(self._done, new, strict=True)]
        if time.monotonic() - self._told > PROGRESS_SECONDS:
            self._told = time.monotonic()
            self._worker.log_event(self._topic, [self._task, *self._done])


def stop(name: str) -> None:
    """Have the running task of a job commit what it has and end."""
    if state := _states.get(name):
        state.stop.set()


def kill(dask_worker: Nanny) -> None:
    """Run by the nanny of a worker whose task hangs: end the process, in whose place it starts another."""
    os.kill(dask_worker.pid, signal.SIGKILL)


def dask_setup(worker: Worker) -> None:
    """In a process that framecache started: signals are for the client; a GPU of its own, if there are any.

    https://docs.dask.org/en/stable/how-to/customize-initialization.html
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    atexit.register(os._exit, 0)  # Python takes seconds to take torch apart
    if num_gpus := torch.cuda.device_count():  # does not start CUDA, which reads the variable once
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(worker.name) % num_gpus]
