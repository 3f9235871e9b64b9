"""Epochs of training: from the store against tensors in memory, and cached against computed each time."""

import os

# As stages.train does: torch's threads sleep while they wait, and leave the cores to those that read.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import models as torchvision_models

from benchmarks.corpora import default_device
from benchmarks.read import Hdf5Clips, drop_cache
from benchmarks.report import Report, Row, alternate, arguments
from benchmarks.stores import (
    CONTAINER_NAMES,
    NUM_FRAMES,
    Container,
    clip_id,
    make_clips,
    make_target,
    publish_clips,
    write_clips,
)
from pipeline.learn.models import build_model
from pipeline.learn.streaming import Features, Loader, channel_statistics, keep_resident
from pipeline.manifest import Clip
from pipeline.settings.model import ModelConfig
from pipeline.store import FeatureView, open_view

DEVICE = default_device()
NUM_THREADS = 8 if DEVICE.type == "cuda" else 2
NUM_CLASSES = 10
MODEL = ModelConfig(scan="frames", projection=64, hidden_size=128, dropout=0)
POOLED, MAPS = (512, 1, 1), (512, 7, 7)

# Maps (B, T, C, H, W) on DEVICE and the clips' numbers, batch after batch.
Epoch = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def main() -> None:
    args = arguments(__doc__)
    report = Report("train", args.quick)
    num_rounds = 3 if args.quick else 9
    with tempfile.TemporaryDirectory(dir=args.folder) as name, contextlib.ExitStack() as closer:
        folder = Path(name)
        pooled = Corpus(folder / "pooled", POOLED, 1_024 if args.quick else 16_384, closer)
        maps = Corpus(folder / "maps", MAPS, 96 if args.quick else 1_024, closer)
        for title, corpus in {"pooled": pooled, "whole maps": maps}.items():
            report.add(f"An epoch, {title}, relative to tensors in memory", epochs(corpus, num_rounds))
        report.add("An epoch, whole maps, cold page cache", cold_epochs(maps))
        report.add("Channel statistics of whole maps, from the store", statistics(maps, num_rounds))
        report.add(
            "Cached against computed each time, in clips of 16 frames", factors(folder, args.quick, closer)
        )
    report.write(args.json)


@dataclass(frozen=True)
class Corpus:
    """Random clips, in memory and in files under one folder."""

    folder: Path
    row_shape: tuple[int, int, int]
    num_clips: int
    closer: contextlib.ExitStack
    batch_size: int = 32

    @cached_property
    def maps(self) -> Tensor:
        """(N, T, C, H, W) float16, on the CPU."""
        clips = make_clips(self.num_clips, row_shape=self.row_shape)
        return torch.from_numpy(clips[0].base)

    @cached_property
    def clips(self) -> list[Clip]:
        return [Clip(clip_id=clip_id(i), sources=(f"{i}.mp4",), split="train") for i in range(self.num_clips)]

    def view(self, container: Container) -> FeatureView:
        here = self.folder / container
        target = make_target(container, row_shape=self.row_shape)
        if not here.exists():
            write_clips(here / "journal", target, self.maps.numpy())
            publish_clips(here / "features", target, self.num_clips, journal=here / "journal")
        return self.closer.enter_context(open_view(here / "features" / target.contract.tap))

    def ready(self) -> Epoch:
        """The floor: batches that are on the device already, the same in every epoch."""
        batches = list(
            zip(
                self.maps.to(DEVICE).split(self.batch_size),
                torch.arange(self.num_clips).split(self.batch_size),
                strict=True,
            )
        )
        return lambda: iter(batches)

    def in_memory(self) -> Epoch:
        """The loop of a corpus that fits: one tensor on the device, indexed by a permutation."""
        maps = self.maps.to(DEVICE)

        def epoch() -> Iterator[tuple[Tensor, Tensor]]:
            for numbers in torch.randperm(self.num_clips).split(self.batch_size):
                yield maps[numbers.to(DEVICE)], numbers

        return epoch

    def streamed(self, features: Features) -> Epoch:
        loader = Loader(features, self.clips, self.batch_size, NUM_THREADS, shuffle_seed=0, device=DEVICE)
        numbers = {clip.clip_id: number for number, clip in enumerate(self.clips)}

        def epoch() -> Iterator[tuple[Tensor, Tensor]]:
            for batch in loader.epoch():
                yield batch.maps, torch.tensor([numbers[clip.clip_id] for clip in batch.clips])

        return epoch

    def resident(self, features: Features) -> Epoch:
        kept = keep_resident(features, self.clips, limit_bytes=1 << 40, device=DEVICE)
        assert kept is not features
        return self.streamed(kept)

    def h5py_workers(self) -> Epoch:
        """What people write: a dataset with a clip a chunk, read by two worker processes."""
        path = self.folder / "clips.h5"
        if not path.exists():
            with h5py.File(path, "w") as file:
                file.create_dataset("maps", data=self.maps.numpy(), chunks=(1, *self.maps.shape[1:]))
        dataset = Hdf5Clips(path)

        def epoch() -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(self.num_clips)
            loader = DataLoader(
                dataset,
                batch_size=self.batch_size,
                sampler=order.tolist(),
                num_workers=2,
                pin_memory=DEVICE.type == "cuda",
            )
            for maps, numbers in zip(loader, order.split(self.batch_size), strict=True):
                yield maps.to(DEVICE, non_blocking=True), numbers

        return epoch

    def check(self, epoch: Epoch) -> None:
        """Compare every clip with the written one, each read once, before anything is timed."""
        seen: list[int] = []
        for maps, numbers in epoch():
            assert torch.equal(maps.cpu(), self.maps[numbers])
            seen += numbers.tolist()
        assert sorted(seen) == list(range(self.num_clips))


class Trainee:
    """The recurrent model, trained step by step on labels without meaning."""

    def __init__(self, row_shape: tuple[int, int, int]) -> None:
        model = build_model("recurrent", MODEL, map_shapes=[row_shape], num_outputs=NUM_CLASSES)
        self.model = model.train().to(DEVICE)
        self.optimizer = torch.optim.AdamW(model.parameters())

    def run(self, epoch: Epoch) -> None:
        loss = torch.zeros(())
        for maps, numbers in epoch():
            outputs = self.model(maps, torch.full((len(maps),), NUM_FRAMES))
            loss = nn.functional.cross_entropy(outputs, (numbers % NUM_CLASSES).to(DEVICE))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        assert np.isfinite(loss.item())  # waits for the GPU


def epochs(corpus: Corpus, num_rounds: int) -> list[Row]:
    view = corpus.view("zarr")
    contenders = {
        "tensors in memory": corpus.in_memory(),
        "tensors in memory, not shuffled": corpus.ready(),
        "framecache, resident": corpus.resident(view),
        **{f"framecache, streamed, {name}": corpus.streamed(corpus.view(name)) for name in CONTAINER_NAMES},
        "h5py, DataLoader, 2 workers": corpus.h5py_workers(),
    }
    for epoch in contenders.values():
        corpus.check(epoch)
    trainee = Trainee(corpus.row_shape)
    seconds = alternate(
        {name: partial(trainee.run, epoch) for name, epoch in contenders.items()}, num_rounds=num_rounds
    )
    return [
        {
            "clips come from": name,
            "clips_per_s": corpus.num_clips / value,
            "time_of_in_memory": value / seconds["tensors in memory"],
            "target": "<= 1.05" if name.startswith("framecache") else None,
        }
        for name, value in seconds.items()
    ]


def cold_epochs(corpus: Corpus) -> list[Row]:
    """As with features larger than memory: every epoch comes from the disk."""
    contenders = {
        "tensors in memory": corpus.in_memory(),
        "framecache, streamed, zarr": corpus.streamed(corpus.view("zarr")),
        "h5py, DataLoader, 2 workers": corpus.h5py_workers(),
    }
    trainee = Trainee(corpus.row_shape)
    runs = {name: partial(trainee.run, epoch) for name, epoch in contenders.items()}
    seconds = alternate(runs, num_rounds=3, before=partial(drop_cache, corpus.folder))
    return [
        {
            "clips come from": name,
            "clips_per_s": corpus.num_clips / value,
            "time_of_in_memory": value / seconds["tensors in memory"],
        }
        for name, value in seconds.items()
    ]


def statistics(corpus: Corpus, num_rounds: int) -> list[Row]:
    """Mean and deviation of each channel, by Dask on threads and by a loop over the clips."""
    view = corpus.view("zarr")

    def loop() -> tuple[np.ndarray, np.ndarray]:
        total, squares, num_values = np.zeros(view.map_shape[0]), np.zeros(view.map_shape[0]), 0
        for clip in corpus.clips:
            values = view.read(clip.clip_id).astype(np.float64)  # (T, C, H, W)
            total += values.sum(axis=(0, 2, 3))
            squares += np.einsum("tchw,tchw->c", values, values)
            num_values += values[:, 0].size
        mean = total / num_values
        return mean, np.sqrt(squares / num_values - mean**2)

    ours, (mean, std) = channel_statistics(view, corpus.clips), loop()
    np.testing.assert_allclose(ours.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(ours.std, std, rtol=1e-6)
    contenders: dict[str, Callable[[], object]] = {
        "a loop over the clips": loop,
        "Dask, 1 thread": partial(channel_statistics, view, corpus.clips, num_threads=1),
        f"Dask, {NUM_THREADS} threads": partial(
            channel_statistics, view, corpus.clips, num_threads=NUM_THREADS
        ),
    }
    seconds = alternate(contenders, num_rounds=num_rounds)
    gigabytes = corpus.maps.numel() * 2 / 1e9
    return [
        {
            "by": name,
            "gb_per_s": gigabytes / value,
            "time_of_a_loop": value / seconds["a loop over the clips"],
        }
        for name, value in seconds.items()
    ]


def factors(folder: Path, quick: bool, closer: contextlib.ExitStack) -> list[Row]:
    """How many times more clips a second training sees when the CNN's maps are cached.

    Without a cache, frames wait in memory, decoded and cropped to 224x224: reading and decoding would
    come on top.
    """
    rows = []
    for arch, channels in {"resnet18": 512, "resnet50": 2048}.items():
        for pooling, size in {"avg": 1, "none": 7}.items():
            row_shape = (channels, size, size)
            batch_size, num_computed, num_clips = (4, 4, 32) if quick else (8, 32, 256)
            num_clips *= 8 if pooling == "avg" else 1
            corpus = Corpus(folder / f"{arch}-{pooling}", row_shape, num_clips, closer, batch_size)
            cached = corpus.streamed(corpus.view("zarr"))
            corpus.check(cached)
            trainee = Trainee(row_shape)
            computed = computed_each_time(arch, num_computed, batch_size=batch_size, pooled=pooling == "avg")
            trainee.run(cached)
            seconds = alternate(
                {
                    "cached": partial(trainee.run, cached),
                    "computed": partial(trainee.run, computed),
                },
                num_rounds=1 if quick else 3,
            )
            rates = {"cached": num_clips / seconds["cached"], "computed": num_computed / seconds["computed"]}
            rows.append(
                {
                    "arch": arch,
                    "pooling": pooling,
                    "cached_clips_per_s": rates["cached"],
                    "computed_clips_per_s": rates["computed"],
                    "factor": rates["cached"] / rates["computed"],
                }
            )
    return rows


def computed_each_time(arch: str, num_clips: int, *, batch_size: int, pooled: bool) -> Epoch:
    """The frozen CNN in every epoch, as torchvision gives it."""
    network = getattr(torchvision_models, arch)()
    trunk = nn.Sequential(*list(network.children())[: -1 if pooled else -2]).eval().to(DEVICE)
    frames = torch.randint(0, 256, (num_clips, NUM_FRAMES, 3, 224, 224), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406], device=DEVICE)[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225], device=DEVICE)[:, None, None]

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for numbers in torch.randperm(num_clips).split(batch_size):
            with torch.no_grad():
                images = (frames[numbers].to(DEVICE) / 255 - mean) / std  # (B, T, 3, 224, 224)
                maps = trunk(images.flatten(0, 1)).unflatten(0, images.shape[:2])  # (B, T, C, H, W)
            yield maps, numbers

    return epoch


if __name__ == "__main__":
    main()
