"""Trainings in processes side by side: on a GPU, one process spends most of its time in Python."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import wait
from typing import Protocol

import torch

from pipeline.errors import PipelineError
from pipeline.learn.member import Metrics
from pipeline.settings.machine import Machine
from pipeline.settings.training import MemberConfig
from pipeline.system.children import Child
from pipeline.system.devices import resolve_device

log = logging.getLogger(__name__)

OnBatch = Callable[[str, int, int], None]  # of a model's name, the number of batches done, and of all
OnEpoch = Callable[[str, Metrics], None]  # of a model's name, and its metrics of the epoch


class Train(Protocol):
    """`train_many` with some of its arguments."""

    def __call__(
        self, *, members: Sequence[MemberConfig], machine: Machine, on_batch: OnBatch, on_epoch: OnEpoch
    ) -> object:
        """Train these members."""
        ...


def train_in_processes(
    train: Train, members: Sequence[MemberConfig], *, machine: Machine, on_batch: OnBatch, on_epoch: OnEpoch
) -> Counter[str]:
    """Train members in `machine.num_trainings` processes, which keep their states where `train` says.

    Whoever trains the same members afterwards goes on from these states. A process that ends by an error or a
    signal leaves the rest of its members to the caller, who also meets the error. With `device: auto`, the
    processes take all GPUs in turn. Returns, for each member, how many epochs `on_epoch` was told of.
    """
    num_told: Counter[str] = Counter()
    machines = _shares(machine, min(machine.num_trainings, len(members)))
    with ExitStack() as stack:
        running = {}
        for position, share in enumerate(machines):
            part = members[position :: len(machines)]
            child = stack.enter_context(Child(_work, train, part, share, torch.get_num_threads()))
            running[child.messages] = child
        while running:
            ready = set(wait(list(running)))
            for messages in [each for each in running if each in ready]:
                try:
                    name, *progress = messages.recv()
                except (EOFError, OSError):  # OSError: it ended within a message
                    if ending := running.pop(messages).ending():
                        log.warning(
                            "A training process ended %s. Its models are trained after the others, in one"
                            " process.",
                            ending,
                        )
                    continue
                if len(progress) == 1:  # the metrics of an epoch
                    num_told[name] += 1
                    on_epoch(name, *progress)
                else:
                    on_batch(name, *progress)
    return num_told


def _shares(machine: Machine, number: int) -> list[Machine]:
    """What each of `number` processes takes of the machine."""
    device = resolve_device(machine.device)
    devices = [machine.device]
    if machine.device == "auto" and device.type == "cuda":
        devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    num_on_each = -(-number // len(devices))
    changes: dict[str, object] = {"num_trainings": 1, "resident_mb": machine.resident_mb // number}
    if device.type == "cuda":
        torch.cuda.empty_cache()  # of trainings before; other processes can't use it
        free_mb = min(torch.cuda.mem_get_info(each)[0] for each in map(resolve_device, devices)) >> 20
        limit_mb = free_mb // 2 if machine.resident_gpu_mb is None else machine.resident_gpu_mb
        changes["resident_gpu_mb"] = limit_mb // num_on_each
    return [
        machine.model_copy(update={**changes, "device": devices[position % len(devices)]})
        for position in range(number)
    ]


def _work(
    train: Train,
    members: Sequence[MemberConfig],
    machine: Machine,
    num_threads: int,
    tell: Callable[[tuple[object, ...]], None],
) -> None:
    logging.disable(logging.WARNING)  # the caller has the same to say when it goes on
    torch.set_num_threads(num_threads)
    with suppress(PipelineError):  # the caller meets it, too
        train(
            members=members,
            machine=machine,
            on_batch=lambda *progress: tell(progress),
            on_epoch=lambda *progress: tell(progress),
        )
