"""Many trainings on one read pass: a member's time and reads against those of a training alone; halving.

On a GPU also against as many processes side by side, and the share of time in which the GPU computes.
"""

import os

# As stages.train does: torch's threads sleep while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import math
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.corpora import default_device
from benchmarks.read import drop_cache
from benchmarks.report import Report, Row, alternate, arguments, seconds_of
from benchmarks.stores import clip_id, make_clips, make_target, publish_clips, write_clips
from pipeline.learn.answering import answer_batches
from pipeline.learn.member import Member
from pipeline.learn.metrics import Units
from pipeline.learn.streaming import (
    Features,
    Loader,
    ResidentFeatures,
    Standardisation,
    channel_statistics,
    keep_resident,
    make_loader,
)
from pipeline.learn.sweeps import Candidate, Ranking, halve, rank, val_metric
from pipeline.learn.tasks import Classification, Task
from pipeline.learn.training import fit_many
from pipeline.manifest import Clip
from pipeline.settings.training import TrainConfig
from pipeline.store import open_view
from tests.support.toy import make_clip, make_features

DEVICE = default_device()
ON_GPU = DEVICE.type == "cuda"
NUM_CORES = torch.get_num_threads()
NUMBERS = (1, 8, 32) if ON_GPU else (1, 2, 4, 8)  # of members
ROW_SHAPE = (1024, 4, 4)  # ResNet-50's layer3 of frames of 64 pixels: the default of params.yaml
CONFIG = TrainConfig(projection=64, hidden_size=128, epochs=1, intra_op_threads=1)

# Members that differ in what an operation computes; and in their order, which they then do not share.
SHAPES: list[dict[str, Any]] = [
    {"hidden_size": size, "cell": cell} for size in (64, 96, 128, 192) for cell in ("lstm", "gru")
]
SEEDS: list[dict[str, Any]] = [{"seed": number % 2} for number in range(8)]

LONG: dict[str, Any] = {"epochs": 20, "patience": None, "batch_size": 64}
GRID: list[dict[str, Any]] = [
    {"hidden_size": size, "learning_rate": rate, "dropout": dropout, **LONG}
    for size in (16, 32, 64)
    for rate in (0.001, 0.003, 0.01)
    for dropout in (0.0, 0.3, 0.6)
]


def main() -> None:
    args = arguments(__doc__)
    report = Report("sweep", args.quick)
    num_rounds = 3 if args.quick else 9
    with tempfile.TemporaryDirectory(dir=args.folder) as name, contextlib.ExitStack() as closer:
        num_clips = (800 if ON_GPU else 240) if args.quick else 1_600
        corpus = Corpus.make(Path(name), num_clips=num_clips, closer=closer)
        resident = corpus.resident()
        report.add("A member's time, features in memory", of_one_shape(resident, NUMBERS, num_rounds))
        ends = (NUMBERS[0], NUMBERS[-1])
        report.add(
            "A member's time, features streamed from the store", of_one_shape(corpus, ends, num_rounds)
        )
        report.add("Eight members that differ", mixed(resident, num_rounds))
        report.add("An epoch of whole maps that do not fit into memory, cold page cache", cold(corpus))
        hard = Corpus.hard(Path(name), num_train=160 if args.quick else 320)
        report.add(
            "27 members of 20 epochs, an order to learn from few clips",
            halvings(hard, 1 if args.quick else 3),
        )
        if ON_GPU:
            report.add("Processes side by side, features on the GPU", processes(corpus, num_rounds))
            report.add("The share of time in which the GPU computes", gpu_shares(resident))
    report.write(args.json)


@dataclass(frozen=True)
class Corpus:
    """Random clips, of which a sixth is the val split."""

    folder: Path
    features: Features
    clips: Sequence[Clip]
    task: Task
    standardisation: Standardisation

    @classmethod
    def make(cls, folder: Path, *, num_clips: int, closer: contextlib.ExitStack) -> "Corpus":
        """Write it to a store."""
        target = make_target("zarr", row_shape=ROW_SHAPE)
        write_clips(folder / "journal", target, make_clips(num_clips, row_shape=ROW_SHAPE))
        publish_clips(folder / "features", target, num_clips, journal=folder / "journal")
        return cls.open(folder, num_clips=num_clips, closer=closer)

    @classmethod
    def open(cls, folder: Path, *, num_clips: int, closer: contextlib.ExitStack) -> "Corpus":
        """What `make` has written."""
        tap = make_target("zarr", row_shape=ROW_SHAPE).contract.tap
        view = closer.enter_context(open_view(folder / "features" / tap))
        clips = [
            Clip(
                clip_id=clip_id(number),
                sources=(f"{number}.mp4",),
                split="val" if number % 6 == 0 else "train",
                label="abcd"[number % 4],
            )
            for number in range(num_clips)
        ]
        train = [clip for clip in clips if clip.split == "train"]
        statistics = channel_statistics(view, train)
        return cls(folder, view, clips, Classification.from_clips(train, CONFIG), statistics)

    @classmethod
    def hard(cls, folder: Path, *, num_train: int, num_val: int = 200) -> "Corpus":
        """In memory: which of two spikes in noise comes first. The fewer clips, the less is learned."""
        rng = np.random.default_rng(0)
        clips, maps = [], {}
        for number in range(num_train + num_val):
            label, frames = number % 2, rng.normal(0, 1, (12, 16, 1, 1)).astype(np.float16)
            early, late = sorted(rng.choice(12, 2, replace=False))
            frames[early, label] += 3
            frames[late, 1 - label] += 3
            split = "train" if number < num_train else "val"
            clips.append(make_clip(clip_id(number), split=split, label="ab"[label]))
            maps[clip_id(number)] = frames
        features, train = make_features(maps), clips[:num_train]
        task, statistics = Classification.from_clips(train, CONFIG), channel_statistics(features, train)
        return cls(folder, features, clips, task, statistics)

    def resident(self) -> "Corpus":
        """The same in memory, with clips of 10 to 14 frames."""
        features = keep_resident(self.features, self.clips, limit_bytes=1 << 40, device=DEVICE)
        assert isinstance(features, ResidentFeatures)
        spans = {
            name: (first, 10 + number % 5) for number, (name, (first, _)) in enumerate(features.spans.items())
        }
        return replace(self, features=replace(features, spans=spans))

    def loader(self, config: TrainConfig, split: str) -> Loader:
        clips = [clip for clip in self.clips if clip.split == split]
        seed = config.seed if split == "train" else None
        return make_loader(self.features, clips, config, device=DEVICE, shuffle_seed=seed)

    def model(self, config: TrainConfig) -> torch.nn.Module:
        return self.task.build_model(
            "recurrent",
            config,
            map_shapes=[self.features.map_shape],
            standardisations=[self.standardisation],
            seed=config.seed,
        )

    def members(self, changes: Sequence[Mapping[str, Any]]) -> list[Member]:
        """Before their first epoch."""
        configs = [CONFIG.model_copy(update=dict(each)) for each in changes]
        trains = {config.seed: self.loader(config, "train") for config in configs}
        val = self.loader(configs[0], "val")
        paths = [self.folder / f"{number}.pt" for number in range(len(configs))]
        for path in paths:
            path.unlink(missing_ok=True)
        return [
            Member(
                self.model(config),
                task=self.task,
                train=trains[config.seed],
                val=val,
                config=config,
                device=DEVICE,
                state_path=path,
            )
            for config, path in zip(configs, paths, strict=True)
        ]


def together(corpus: Corpus, changes: Sequence[Mapping[str, Any]]) -> None:
    """An epoch of these members."""
    torch.set_num_threads(1)
    fit_many(corpus.members(changes), num_threads=NUM_CORES)
    torch.set_num_threads(NUM_CORES)


def in_turn(corpus: Corpus, changes: Sequence[Mapping[str, Any]]) -> None:
    """The same, one member after the other."""
    for each in changes:
        together(corpus, [each])


def plain_loop(corpus: Corpus) -> None:
    """An epoch as tutorials have it: torch's number of threads, its AdamW, nothing shared or at once."""
    model, task = corpus.model(CONFIG).to(DEVICE).train(), corpus.task
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=CONFIG.weight_decay)
    for batch in corpus.loader(CONFIG, "train").epoch():
        outputs = task.run_model(model, replace(batch, maps=batch.maps.to(DEVICE)))
        loss = task.loss(outputs, task.targets(batch).to(DEVICE))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    answers = answer_batches(model, corpus.loader(CONFIG, "val").epoch(), task=task, device=DEVICE)
    task.measure(answers)(np.ones(len(answers.clips)))


def of_one_shape(corpus: Corpus, numbers: Sequence[int], num_rounds: int) -> list[Row]:
    """A row for each number of members, the first of which is 1."""
    rates = [{"learning_rate": 1e-3 + number * 1e-4} for number in range(max(numbers))]
    contenders: dict[str, Callable[[], object]] = {
        str(number): partial(together, corpus, rates[:number]) for number in numbers
    }
    contenders["plain"] = partial(plain_loop, corpus)
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    timed = {name: partial(_with_cpu_seconds, run, cpu[name]) for name, run in contenders.items()}
    seconds = alternate(timed, num_rounds=num_rounds)
    own = {name: statistics.median(values) for name, values in cpu.items()}
    return [
        {
            "members": number,
            "seconds a member": seconds[str(number)] / number,
            "times as fast as alone": seconds["1"] * number / seconds[str(number)],
            "as a plain loop": seconds["plain"] * number / seconds[str(number)],
            # What else runs on the machine does not disturb these.
            "CPU seconds a member": own[str(number)] / number,
            "of a plain loop": own["plain"],
        }
        for number in numbers
    ]


def cold(corpus: Corpus) -> list[Row]:
    """What comes from the disk in an epoch of many members, against that of one."""
    sizes = [corpus.features.num_frames(clip.clip_id) * math.prod(ROW_SHAPE) * 2 for clip in corpus.clips]
    granted = sum(sizes) // 2
    assert keep_resident(corpus.features, corpus.clips, limit_bytes=granted) is corpus.features
    read = {}
    for number in (1, 8):
        drop_cache(corpus.folder)
        before = _read_bytes()
        together(corpus, [{"learning_rate": 1e-3 + each * 1e-4} for each in range(number)])
        read[number] = _read_bytes() - before
    return [
        {
            "members": number,
            "MB of clips": sum(sizes) / 2**20,
            "MB granted": granted / 2**20,
            "MB read": size / 2**20,
            "of those of one member": size / max(1, read[1]),  # 0 of a filesystem that does not count
        }
        for number, size in read.items()
    ]


def _read_bytes() -> int:
    """What this process has read from disks so far; see proc_pid_io(5)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def halvings(corpus: Corpus, num_rounds: int) -> list[Row]:
    """Against all members trained to their end; the winner's difference is from the winner of these."""
    kinds: dict[str, dict[str, Any]] = {
        "none": {"rungs": (), "keep": 1.0},
        "to a third after 2 and 6": {"rungs": (2, 6), "keep": 1 / 3},
        "to a quarter after 2 and 6": {"rungs": (2, 6), "keep": 1 / 4},
    }
    rankings: dict[str, Ranking] = {}

    def run(name: str) -> None:
        rankings[name] = ranking(corpus, **kinds[name])

    seconds = alternate({name: partial(run, name) for name in kinds}, num_rounds=num_rounds)
    full = {setting.members[0]: setting for setting in rankings["none"].settings}
    rows: list[Row] = []
    for name, each in rankings.items():
        winner = full[each.winner]
        low, high = (winner.difference and winner.difference.interval) or (0.0, 0.0)
        rows.append(
            {
                "halving": name,
                "seconds": seconds[name],
                "times as fast": seconds["none"] / seconds[name],
                "winner's val accuracy": winner.value,
                "its difference": winner.value - rankings["none"].settings[0].value,
                "from": low,
                "to": high,
            }
        )
    return rows


def ranking(corpus: Corpus, *, rungs: Sequence[int], keep: float) -> Ranking:
    """Train the members of GRID, and rank those that were trained to their end."""
    members = {str(number): each for number, each in enumerate(corpus.members(GRID))}

    def train_until(names: Sequence[str], epochs: int | None) -> dict[str, list[float]]:
        fit_many([members[name] for name in names], until=epochs, num_threads=NUM_CORES)
        return {name: [metrics["val"]["loss"] for metrics in members[name].history] for name in names}

    torch.set_num_threads(1)
    halve([[name] for name in members], rungs=rungs, keep=keep, train_until=train_until)
    torch.set_num_threads(NUM_CORES)
    candidates, num_clips = [], 0
    for name, member in members.items():
        if member.is_done:
            best = member.result().history[member.best_epoch]["val"]
            answers = member.best_predictions()
            assert answers
            metric = val_metric(answers, task=corpus.task, monitor="accuracy")
            candidates.append(Candidate(name, name, metric, best["loss"]))
            num_clips = len(answers.clips)
    return rank(candidates, units=Units.of([None] * num_clips), sign=1, num_resamples=1_000, seed=0)


def _with_cpu_seconds(run: Callable[[], object], spent: list[float]) -> None:
    started = time.process_time()
    run()
    spent.append(time.process_time() - started)


def mixed(corpus: Corpus, num_rounds: int) -> list[Row]:
    """Against the same members in turn."""
    rows: list[Row] = []
    for name, changes in {"shapes": SHAPES, "two orders": SEEDS}.items():
        seconds = alternate(
            {"together": partial(together, corpus, changes), "in turn": partial(in_turn, corpus, changes)},
            num_rounds=num_rounds,
        )
        rows.append(
            {
                "in": name,
                "seconds a member": seconds["together"] / len(changes),
                "times as fast as in turn": seconds["in turn"] / seconds["together"],
            }
        )
    return rows


def processes(corpus: Corpus, num_rounds: int) -> list[Row]:
    """As many processes, each with a member and with the features on the GPU once more."""
    number = 8
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(number + 1)
    workers = [
        context.Process(
            target=_epochs_of_process,
            args=(corpus.folder, len(corpus.clips), position, num_rounds, barrier),
            daemon=True,
        )
        for position in range(number)
    ]
    for worker in workers:
        worker.start()
    seconds = []
    for _ in range(num_rounds):
        barrier.wait()  # all are ready
        seconds.append(seconds_of(barrier.wait))  # until the last one is done
    for worker in workers:
        worker.join()
    resident = corpus.resident()
    rates = [{"learning_rate": 1e-3 + position * 1e-4} for position in range(number)]
    one_process = alternate({"": partial(together, resident, rates)}, num_rounds=num_rounds)[""]
    side_by_side = statistics.median(seconds)
    return [
        {
            "processes": number,
            "seconds a member": side_by_side / number,
            "members of one process": one_process / number,
            "one process is faster by": side_by_side / one_process,
        }
    ]


def _epochs_of_process(
    folder: Path, num_clips: int, position: int, num_rounds: int, barrier: "threading.Barrier"
) -> None:
    with tempfile.TemporaryDirectory() as states, contextlib.ExitStack() as closer:
        corpus = Corpus.open(folder, num_clips=num_clips, closer=closer).resident()
        corpus = replace(corpus, folder=Path(states))
        work = partial(together, corpus, [{"learning_rate": 1e-3 + position * 1e-4}])
        work()
        for _ in range(num_rounds):
            barrier.wait()
            work()
            barrier.wait()


def gpu_shares(corpus: Corpus) -> list[Row]:
    """The time of the kernels, which never overlap here, relative to that of the epoch."""
    rows: list[Row] = []
    for number in NUMBERS:
        rates = [{"learning_rate": 1e-3 + position * 1e-4} for position in range(number)]
        together(corpus, rates)
        seconds = seconds_of(partial(together, corpus, rates))  # the profiler would slow the launches down
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
            together(corpus, rates)
        events = [event for event in profiler.events() or [] if event.device_type.name == "CUDA"]
        busy = sum(event.device_time_total for event in events) / 1e6
        rows.append(
            {"members": number, "kernels and copies": len(events), "share of the GPU": busy / seconds}
        )
    return rows


if __name__ == "__main__":
    main()
