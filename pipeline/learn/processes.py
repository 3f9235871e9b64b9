"""Trainings in processes side by side: on a GPU, one process spends most of its time in Python."""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from typing import Protocol

import torch

from pipeline.errors import PipelineError
from pipeline.settings.machine import Machine
from pipeline.settings.training import MemberConfig

OnBatch = Callable[[str, int, int], None]  # of a model's name, the number of batches done, and of all


class Train(Protocol):
    """`train_many` with some of its arguments."""

    def __call__(self, *, members: Sequence[MemberConfig], machine: Machine, on_batch: OnBatch) -> object:
        """Train these members."""
        ...


def train_in_processes(
    train: Train, members: Sequence[MemberConfig], *, machine: Machine, on_batch: OnBatch
) -> None:
    """Train members in `machine.num_trainings` processes, which keep their states where `train` says.

    Whoever trains the same members afterwards goes on from these states. A process that ends by an error
    leaves the rest to him, and so the error. With `device: auto`, the processes take all GPUs in turn.
    """
    context = multiprocessing.get_context("spawn")
    number = min(machine.num_trainings, len(members))
    heard: list[Connection] = []
    with ExitStack() as stack:
        for position in range(number):
            ours, theirs = context.Pipe(duplex=False)
            part = members[position::number]
            process = context.Process(
                target=_work, args=(train, part, _share(machine, number, position), theirs), daemon=True
            )
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            theirs.close()
            heard.append(ours)
        while heard:
            ready = set(wait(heard))
            for connection in [each for each in heard if each in ready]:
                try:
                    on_batch(*connection.recv())
                except EOFError:
                    heard.remove(connection)


def _share(machine: Machine, number: int, position: int) -> Machine:
    """The part of the machine that one of `number` processes takes."""
    changes: dict[str, object] = {"num_trainings": 1, "resident_mb": machine.resident_mb // number}
    if machine.resident_gpu_mb is not None:
        changes["resident_gpu_mb"] = machine.resident_gpu_mb // number
    elif torch.cuda.is_available():
        changes["resident_gpu_mb"] = (torch.cuda.mem_get_info()[0] >> 21) // number
    if machine.device == "auto" and torch.cuda.is_available():
        changes["device"] = f"cuda:{position % torch.cuda.device_count()}"
    return machine.model_copy(update=changes)


def _work(train: Train, members: Sequence[MemberConfig], machine: Machine, told: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    with suppress(PipelineError, BrokenPipeError):  # the parent is gone, or meets the error itself
        train(members=members, machine=machine, on_batch=lambda *batch: told.send(batch))
