"""Extraction over Dask, on real clusters of processes, against the run in one process."""

import multiprocessing
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import dask
import distributed.utils
import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster
from pydantic import ValidationError

from pipeline.backbone import Backbone
from pipeline.backbone.sources import obtain_weights
from pipeline.backbone.weights import load_weights, save_weights
from pipeline.errors import ConfigError
from pipeline.extraction import Plan, Result, Target, compute_clips, make_plan, make_targets, publish_view
from pipeline.extraction.cluster import dask as extract_dask
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import DaskConfig, Machine
from pipeline.settings.weights import WeightsConfig
from pipeline.store import Journal, open_view
from tests.extraction.test_finite import scaled_weights
from tests.support.extraction import random_weights, settings_of, sources_of
from tests.support.features import make_contract, make_layout
from tests.support.media import write_video

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
NAMES = [str(number) for number in range(6)]

# What the workers load when they start, as with `dask worker --preload`: clips that do harm.
PRELOAD = """
import os, signal, time
from pipeline.extraction import decode

read_frames = decode.read_frames

def read_harm(paths, **options):
    name = paths[0].stem
    if name == "poison":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "broken":
        raise ZeroDivisionError("a bug")
    for batch in read_frames(paths, **options):
        yield batch
        while name == "endless":
            yield batch
        if name == "hang":
            time.sleep(1000)
        if name == "fragile" and not os.path.exists(paths[0].with_suffix(".died")):
            open(paths[0].with_suffix(".died"), "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

def dask_setup(worker):
    decode.read_frames = read_harm
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, and weights."""
    folder = tmp_path_factory.mktemp("dask")
    for number, name in enumerate([*NAMES, "fragile", "poison", "broken", "endless", "hang"]):
        path = folder / f"corpus/{name}.mp4"
        write_video(path, num_frames=9 + number, size=(32, 32), first_index=number)
    save_weights(random_weights(), path=folder / "weights")
    (folder / "preload.py").write_text(PRELOAD)
    return folder


@pytest.fixture(scope="module")
def forkserver() -> Iterator[None]:
    """Workers are forked from a server that has imported torch."""
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        distributed.utils.get_mp_context()
        multiprocessing.get_context("forkserver").set_forkserver_preload(["pipeline.extraction.cluster.dask"])
        yield


@pytest.fixture(scope="module")
def cluster(folder: Path, forkserver: None) -> Iterator[LocalCluster]:  # noqa: ARG001
    """Two processes with a thread each."""
    with LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",
        preload=str(folder / "preload.py"),
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features computed in this process."""
    return extract(folder, tmp_path_factory.mktemp("alone"), [*NAMES, "fragile"])[1]


def prepare(
    folder: Path, path: Path, names: list[str], **changes: object
) -> tuple[Plan, ExtractConfig, Machine, list[Target], Journal]:
    fields = {"preprocessing": {"resize": 32, "crop": 32}, "batch_size": 4, **changes}
    config, machine = settings_of({"taps": ["layer3", "layer4"], **fields})
    weights = load_weights(folder / "weights")
    targets = make_targets(config, weights, Backbone(weights, taps=config.taps, device=CPU))
    journal = Journal(path / "journal")
    clips = [Clip(clip_id=name, sources=(f"{name}.mp4",), split="train") for name in names]
    sources = sources_of(clips, root=folder / "corpus", digests=journal.digest_cache())
    todo = make_plan(clips, sources=sources, targets=targets, journal=journal)
    return todo, config, machine, targets, journal


def extract(
    folder: Path, path: Path, names: list[str], *, on_progress=lambda *_: None, **changes: object
) -> tuple[Result, Path]:
    """Plan, compute and publish, over Dask if the parameters say so; the features' folder."""
    todo, config, machine, targets, journal = prepare(folder, path, names, **changes)
    common = {
        "root": folder / "corpus",
        "targets": targets,
        "journal": journal,
        "config": config,
        "machine": machine,
    }
    with journal.lock(targets[0].contract.forward_digest(), on_wait=print):
        if machine.dask:
            weights = folder / "weights"
            result = extract_dask.compute_on_workers(
                todo.to_extract, weights=weights, on_progress=on_progress, **common
            )
        else:
            backbone = Backbone(load_weights(folder / "weights"), taps=config.taps, device=CPU)
            result = compute_clips(todo.to_extract, backbone=backbone, **common)
        publish_view(todo.keys, targets=targets, journal=journal, path=path / "features")
    return result, path / "features"


def assert_same(features: Path, expected: Path, names: list[str]) -> None:
    for tap in ("layer3", "layer4"):
        with open_view(features / tap) as ours, open_view(expected / tap) as theirs:
            assert ours.clip_ids() == names
            for name in names:
                np.testing.assert_array_equal(ours.read(name), theirs.read(name))
                np.testing.assert_array_equal(ours.frame_seconds(name), theirs.frame_seconds(name))


class Progress:
    """Sums what it is told; Ctrl-C after some frames."""

    def __init__(self, *, interrupt_after: int | None = None) -> None:
        self.done = np.zeros(3, int)  # clips, frames, bytes
        self._interrupt_after = interrupt_after

    def __call__(self, *new: int) -> None:
        self.done += new
        if self._interrupt_after and self.done[1] > self._interrupt_after:
            raise KeyboardInterrupt


def test_two_workers_give_the_bits_of_one_process(
    folder: Path, cluster: LocalCluster, alone: Path, tmp_path: Path
) -> None:
    progress = Progress()
    result, features = extract(folder, tmp_path, NAMES, dask=cluster.scheduler_address, on_progress=progress)
    assert_same(features, alone, NAMES)
    num_frames = sum(range(9, 15))
    assert (result.num_clips, result.num_frames, result.failed) == (6, num_frames, {})
    assert progress.done.tolist() == [6, num_frames, result.num_bytes]
    assert 1 <= result.lanes["compute"].num_threads <= 2


@pytest.mark.usefixtures("forkserver")
def test_clips_that_float16_can_not_hold_are_set_aside_by_workers_and_not_waited_for(
    folder: Path, cluster: LocalCluster, tmp_path: Path
) -> None:
    (tmp_path / "corpus").symlink_to(folder / "corpus")
    save_weights(scaled_weights(layer4=1e6), path=tmp_path / "weights")
    result, features = extract(tmp_path, tmp_path, NAMES[:3], dask=cluster.scheduler_address)
    assert (result.num_clips, result.num_quarantined, result.failed) == (3, 3, {})
    with open_view(features / "layer3") as three, open_view(features / "layer4") as four:
        assert (three.clip_ids(), four.clip_ids()) == (NAMES[:3], [])
    text = (features / "quarantine.csv").read_text()
    assert text.count("layer4 at 0.000 s has a value of magnitude ") == 3


def test_processes_of_this_machine_give_the_same_bits(folder: Path, alone: Path, tmp_path: Path) -> None:
    _, features = extract(folder, tmp_path, NAMES[:2], dask={"local": 1})
    assert_same(features, alone, NAMES[:2])


def test_dask_is_a_number_of_processes_or_an_address() -> None:
    assert Machine(dask={"local": 2}).dask == DaskConfig(local=2)
    assert Machine(dask="tcp://host:8786").dask == DaskConfig(scheduler="tcp://host:8786")
    for wrong in ("host:8786", {"local": 0}, {}, {"local": 1, "scheduler": "tcp://host:8786"}):
        with pytest.raises(ValidationError):
            Machine(dask=wrong)


@pytest.fixture(scope="module")
def eventful(
    folder: Path, cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Result, Path]:
    """A run in which one clip kills its worker once, and one every time."""
    names = ["fragile", *NAMES[:3], "poison", *NAMES[3:]]
    progress = Progress()
    path = tmp_path_factory.mktemp("eventful")
    result, features = extract(folder, path, names, dask=cluster.scheduler_address, on_progress=progress)
    assert progress.done[0] == len(names)
    return result, features


def test_the_clips_of_a_worker_that_is_killed_are_computed_by_another(
    folder: Path, eventful: tuple[Result, Path], alone: Path
) -> None:
    result, features = eventful
    assert (folder / "corpus/fragile.died").exists()
    assert_same(features, alone, [*NAMES, "fragile"])
    assert (result.num_clips, result.failed) == (7, {})


def test_a_clip_that_keeps_killing_workers_is_quarantined_and_no_other(
    eventful: tuple[Result, Path],
) -> None:
    result, features = eventful
    assert result.num_quarantined == 1
    rows = (features / "quarantine.csv").read_text().splitlines()[1:]
    assert len(rows) == 1
    assert rows[0].startswith("poison,poison.mp4,2 Dask workers died while they had this clip alone.")


def test_a_clip_that_hangs_is_set_aside_for_the_next_run(
    folder: Path, cluster: LocalCluster, tmp_path: Path
) -> None:
    result, features = extract(folder, tmp_path, ["hang"], dask=cluster.scheduler_address, stall_seconds=2)
    assert result.failed == {"hang": "2 Dask workers stalled while they had this clip alone."}
    assert (features / "quarantine.csv").read_text().count("\n") == 1


def test_a_bug_in_a_task_ends_the_run_with_its_traceback(
    folder: Path, cluster: LocalCluster, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)On .*read_harm.*ZeroDivisionError: a bug"):
        extract(folder, tmp_path, ["broken", "0"], dask=cluster.scheduler_address)


def test_an_interrupt_keeps_the_clips_that_are_complete(
    folder: Path, cluster: LocalCluster, tmp_path: Path
) -> None:
    names = ["0", "endless", *NAMES[1:]]  # the first task gets two, or four
    with pytest.raises(KeyboardInterrupt):
        extract(
            folder,
            tmp_path,
            names,
            dask=cluster.scheduler_address,
            on_progress=Progress(interrupt_after=sum(range(9, 15)) + 50),
        )
    todo, *_ = prepare(folder, tmp_path, names)
    assert "0" not in [clip.clip.clip_id for clip in todo.to_extract]


def test_a_worker_that_sees_other_files_is_refused_by_name(
    folder: Path,
    cluster: LocalCluster,
    alone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """/proc/self/cwd is another folder for each process: like a path that is not shared."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for path in (here, elsewhere):
        path.mkdir()
    (here / "corpus").symlink_to(folder / "corpus")
    (here / "weights").symlink_to(folder / "weights")
    (elsewhere / "corpus").mkdir()
    (elsewhere / "corpus/0.mp4").write_bytes(b"another")
    weights = obtain_weights(WeightsConfig(arch="resnet18", source="random:1"))
    save_weights(weights, path=elsewhere / "weights")
    monkeypatch.chdir(here)
    mine = Path("/proc/self/cwd")
    with Client(cluster, set_as_default=False) as client:
        first, second = client.scheduler_info()["workers"]
        client.run(os.chdir, elsewhere, workers=[first])
        client.run(os.chdir, here, workers=[second])
        _, features = extract(folder, mine, NAMES, dask=cluster.scheduler_address)
        assert_same(features, alone, NAMES)
        assert (
            f"{socket.gethostname()} ({first}): It does not see the client's journal at {mine}" in caplog.text
        )

        client.run(os.chdir, elsewhere, workers=[second])
        with pytest.raises(
            ConfigError, match=r"(?s)No Dask worker can take part.*Its .*cwd/corpus is not the"
        ):
            extract(mine, tmp_path, ["0"], dask=cluster.scheduler_address)
        (elsewhere / "corpus/0.mp4").write_bytes((folder / "corpus/0.mp4").read_bytes())
        with pytest.raises(ConfigError, match=r"Its .*cwd/weights has another sha256 than the client's"):
            extract(mine, tmp_path, ["0"], dask=cluster.scheduler_address)


def test_a_sweep_waits_for_a_writer_that_has_outlived_its_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would take the shard that is about to get its record."""
    contract = make_contract()
    layout = make_layout(contract)
    journal = Journal(tmp_path)
    shard = journal.directory(contract, layout) / "unfinished.shard"
    waiting = threading.Event()
    monkeypatch.setattr("pipeline.store.journal._say_waiting", lambda _: waiting.set())
    sweep = threading.Thread(target=journal.sweep, args=(contract, layout))
    with journal.writing(contract.forward_digest()):
        shard.touch()
        sweep.start()
        assert waiting.wait(10)
        assert shard.exists()
    sweep.join(10)
    assert not shard.exists()
