"""Trainings in several processes: what the caller is told, and what each process takes of the machine."""

import logging
from pathlib import Path

import pytest
import torch

from pipeline.learn.processes import _shares, train_in_processes
from pipeline.settings.machine import Machine
from pipeline.settings.training import MemberConfig, TrainConfig
from tests.support import trained_apart


@pytest.mark.slow
def test_of_processes_that_end_early_the_caller_is_warned(caplog, capfd, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    batches, losses = [], []
    names = ("killed", "fails", "well", "left", "left, too", "well, too")
    num_told = train_in_processes(
        trained_apart.train,
        [MemberConfig(name, TrainConfig(), Path("manifest.csv")) for name in names],
        machine=Machine(device="cpu", num_trainings=3),
        on_batch=lambda *progress: batches.append(progress),
        on_epoch=lambda name, metrics: losses.append((name, metrics["val"]["loss"])),
    )
    assert sorted(batches) == [(name, 1, 3) for name in ("fails", "killed", "well", "well, too")]
    assert losses == [(name, loss) for name in ("well", "well, too") for loss in (2.0, 1.0)]
    assert num_told == {"well": 2, "well, too": 2}
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert sorted(warnings) == [
        f"A training process ended {end}. Its models are trained after the others, in one process."
        for end in ("by SIGKILL", "with exit code 1")
    ]
    assert "MemoryError" in capfd.readouterr().err


GB = 1 << 30


@pytest.mark.parametrize(
    ("settings", "devices", "resident_gpu_mb"),
    [
        ({}, ["cuda:0", "cuda:1"] * 2, 5 * 1024),  # two processes on each, half of the 20 GB that are free
        ({"device": "cuda:1"}, ["cuda:1"] * 4, 5 * 1024),
        ({"device": "cuda:0"}, ["cuda:0"] * 4, 5 * 512),
        ({"resident_gpu_mb": 100}, ["cuda:0", "cuda:1"] * 2, 50),
        ({"device": "cpu"}, ["cpu"] * 4, None),
    ],
)
def test_processes_divide_the_memory_of_the_gpus_that_they_use(
    monkeypatch, settings, devices, resident_gpu_mb
):
    free = {"cuda:0": 20 * GB, "cuda:1": 40 * GB}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[str(device)], 80 * GB))
    shares = _shares(Machine(resident_mb=1000, **settings), 4)
    assert [share.device for share in shares] == devices
    assert {share.resident_gpu_mb for share in shares} == {resident_gpu_mb}
    assert {(share.resident_mb, share.num_trainings) for share in shares} == {(250, 1)}
