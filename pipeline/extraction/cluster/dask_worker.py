"""A worker's part of an extraction on Dask: it is checked once, then computes batches of clips.

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
from pipeline.errors import ConfigError, OutOfMemoryError, PipelineError, os_error_text
from pipeline.extraction.engine import compute_clips
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.result import Result
from pipeline.extraction.targets import Target, extracting_backbone
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.store import DigestCache, Journal
from pipeline.system.devices import resolve_device
from pipeline.system.memory import is_out_of_memory, keep_freed_memory
from pipeline.system.own_code import OwnCode

PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class TaskContext:
    """What all tasks of one extraction share. Paths are absolute."""

    name: str  # unique; topic of its progress events
    root: Path
    weights: Path
    journal: Path
    targets: tuple[Target, ...]
    config: ExtractConfig
    machine: Machine  # its device, batch size and threads are the workers'
    sources: Mapping[Path, int | None]  # a few of the corpus, to know it by: size in bytes, None for a folder
    own: OwnCode | None = None  # that builds the network; workers see it under the same path

    @property
    def token(self) -> Path:
        """A file of the journal, for a worker to know it by."""
        return self.journal / "locks" / f"{self.name}.run"


@dataclass
class _State:
    """What a worker process keeps from one task of an extraction to the next."""

    context: TaskContext
    backbone: Backbone
    digests: DigestCache  # as the client has saved them
    stop: threading.Event


_states: dict[str, _State] = {}  # by the name of the extraction: at most one


def why_refused(context: TaskContext) -> str | None:
    """Why this worker can't take part, naming the host and the path; None when it can."""
    try:
        _check_files(context)
        _prepare(context)
        with Journal(context.journal).writing(context.targets[0].contract.forward_digest()):
            pass
    except (PipelineError, OSError) as error:
        return f"{socket.gethostname()} ({get_worker().address}): {error}"
    return None


def _check_files(context: TaskContext) -> None:
    """Raise ConfigError for a file that is not the client's."""
    if context.targets[0].contract.revision != REVISION:
        raise ConfigError("Its framecache is another revision. Install the client's on every worker.")
    if not context.token.exists():
        raise ConfigError(
            f"It does not see the client's journal at {context.journal}. Put the journal where all see it"
            " under the same path."
        )
    for path, size_bytes in context.sources.items():
        if not path.exists() or (size_bytes is not None and path.stat().st_size != size_bytes):
            found = f"is not the client's {path.name}" if path.exists() else f"has no {path.name}"
            raise ConfigError(
                f"Its {context.root} {found}. Put the corpus where all see it under the same path."
            )


def _prepare(context: TaskContext) -> _State:
    """The network on this worker's device, made once an extraction.

    Raises ConfigError when its weights are not the client's.
    """
    keep_freed_memory()
    torch.set_num_threads(get_worker().state.nthreads)  # Dask's processes start with one
    if state := _states.get(context.name):
        return state
    weights = load_weights(context.weights, own=context.own)
    contract = context.targets[0].contract
    if weights.code != contract.code:
        raise ConfigError(
            f"Its code of {contract.arch} is another than the client's. Put it where all see it."
        )
    if weights.sha256 != contract.weights_sha256:
        raise ConfigError(
            f"Its {context.weights} has another sha256 than the client's ({weights.sha256[:12]}...). Put the"
            " weights where all see them under the same path."
        )
    device = resolve_device(context.machine.device)
    backbone = extracting_backbone(weights, context.config, device=device, backend=context.config.backend)
    _states.clear()
    _states[context.name] = _State(
        context, backbone, Journal(context.journal).digest_cache(), threading.Event()
    )
    return _states[context.name]


def compute_chunk(context: TaskContext, task: int, planned: Sequence[PlannedClip]) -> Result:
    """Compute clips into the journal. What was committed stays when the worker dies in the middle.

    Raises a PipelineError as it is, and anything else as a RuntimeError with host and traceback, since not
    every exception can be sent.
    """
    state = _prepare(context)
    journal = Journal(context.journal)
    try:
        with journal.writing(context.targets[0].contract.forward_digest()):
            return compute_clips(
                planned,
                root=context.root,
                targets=context.targets,
                backbone=state.backbone,
                journal=journal,
                config=context.config,
                machine=context.machine,
                on_progress=_Progress(get_worker(), context.name, task),
                digests=state.digests,
                stop=state.stop,
            )
    except PipelineError:
        raise
    except Exception as error:
        where = f"On {socket.gethostname()}"
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"{where}: out of memory: {error}. A smaller batch_size takes less."
            ) from None
        if isinstance(error, OSError) and (text := os_error_text(error)):
            raise PipelineError(f"{where}: {text}") from None
        raise RuntimeError(f"{where}: {traceback.format_exc()}") from None


class _Progress:
    """Tells the client from time to time how far a task is."""

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
    """Have the running task of the extraction `name` commit what it has, and end."""
    if state := _states.get(name):
        state.stop.set()


def kill(dask_worker: Nanny) -> None:
    """End the worker of this nanny, which starts another: its task hangs."""
    os.kill(dask_worker.pid, signal.SIGKILL)


def dask_setup(worker: Worker) -> None:
    """Prepare a process that framecache started: it ignores signals, and has one of the GPUs, if any.

    https://docs.dask.org/en/stable/how-to/customize-initialization.html
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    atexit.register(os._exit, 0)  # Python takes seconds to take torch apart
    if num_gpus := torch.cuda.device_count():  # does not start CUDA, which reads the variable once
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(num_gpus)))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(worker.name) % num_gpus]
