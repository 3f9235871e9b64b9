"""What a process of `train_in_processes` runs in tests."""

import os
import signal
from collections.abc import Callable, Sequence

import torch

from pipeline.settings.machine import Machine
from pipeline.settings.training import MemberConfig


def train(
    *,
    members: Sequence[MemberConfig],
    machine: Machine,  # noqa: ARG001
    on_batch: Callable[[str, int, int], None],
    on_epoch: Callable[[str, dict[str, dict[str, float]]], None],
) -> None:
    """Tell of two epochs of each member; one named "killed" ends the process, one named "fails" raises."""
    for member in members:
        on_batch(member.name, 1, torch.get_num_threads())
        if member.name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if member.name == "fails":
            raise MemoryError
        for loss in (2.0, 1.0):
            on_epoch(member.name, {"val": {"loss": loss, **{f"of class {k}": loss for k in range(10_000)}}})
