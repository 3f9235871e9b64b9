"""Writing features: against a plain write + fsync of the same bytes, and what each codec and dtype costs."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import corpora
from benchmarks.corpora import default_device
from benchmarks.report import Report, Row, alternate, arguments
from benchmarks.stores import (
    CLIP_BYTES,
    CONTAINER_NAMES,
    NUM_FRAMES,
    Codec,
    clip_id,
    make_clips,
    make_target,
    publish_clips,
    write_clips,
)
from benchmarks.writers import write_rates
from pipeline.backbone import Backbone
from pipeline.backbone.weights import load_weights
from pipeline.extraction import Target
from pipeline.learn.answering import answer_batches
from pipeline.learn.member import Member
from pipeline.learn.models import build_model
from pipeline.learn.streaming import ResidentFeatures, channel_statistics, keep_resident, make_loader
from pipeline.learn.tasks import TASK_CLASSES
from pipeline.learn.training import fit_many
from pipeline.manifest import Clip, read_manifest
from pipeline.settings.extract import StoreConfig
from pipeline.store import FeatureView, layout_for, open_view, read_record
from stages.params import read_params
from stages.places import weights_path
from stages.project.visible import corpus_root

CODECS: tuple[Codec, ...] = ("none", "lz4", "zstd")
SEEDS = (0, 1, 2)


def main() -> None:
    args = arguments(__doc__)
    report = Report("write", args.quick)
    num_clips, num_rounds = (128, 3) if args.quick else (640, 9)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        title = "Uncompressed, relative to a plain write + fsync of the same bytes"
        report.add(title, plain(Path(name), num_clips, num_rounds))
    with contextlib.ExitStack() as stack:
        places = {"disk": args.folder, "tmpfs": Path("/dev/shm")}
        folders = {
            place: Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
            for place, folder in places.items()
            if folder.is_dir()
        }
        size_mb, num_rounds = (512, 2) if args.quick else (2048, 5)
        rows = write_rates(folders, size_mb=size_mb, num_threads=(1, 2, 4), num_rounds=num_rounds)
        report.add("The engine's writers, relative to a plain write + fsync by as many threads", rows)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        clips = list(read_manifest(Path(read_params().corpus.manifest)))
        clips = clips[:30] if args.quick else clips
        view = extract(Path(name), clips)
        report.add("What the layout costs, on features of the corpus", layouts(Path(name), view, num_rounds))
        if not args.quick:
            report.add("What the dtype costs downstream", accuracy(view, clips, Path(name)))
    report.write(args.json)


def plain(folder: Path, num_clips: int, num_rounds: int) -> list[Row]:
    clips = make_clips(num_clips)
    gigabytes = num_clips * CLIP_BYTES / 1e9
    written = folder / "written"
    contenders: dict[str, Callable[[], None]] = {"plain": partial(write_plainly, written, clips)}
    for container in CONTAINER_NAMES:
        target = make_target(container)
        contenders[container] = partial(write_clips, written, target, clips)
        contenders[container]()
        with open_view(publish_clips(folder / container, target, num_clips, journal=written)) as view:
            for number, maps in enumerate(clips):
                np.testing.assert_array_equal(view.read(clip_id(number)), maps)
        shutil.rmtree(written)
        shutil.rmtree(folder / container)
    seconds = alternate(
        contenders, num_rounds=num_rounds, before=lambda: shutil.rmtree(written, ignore_errors=True)
    )
    return [
        {
            "container": container,
            "plain_gb_per_s": gigabytes / seconds["plain"],
            "framecache_gb_per_s": gigabytes / seconds[container],
            "ratio": seconds["plain"] / seconds[container],
            "target": ">= 0.7",
        }
        for container in CONTAINER_NAMES
    ]


def write_plainly(folder: Path, clips: Sequence[np.ndarray]) -> None:
    """Files of a full shard's size, a clip a write, each flushed to the disk."""
    folder.mkdir()
    clips_per_file = make_target("zarr").layout.rows_per_shard // NUM_FRAMES
    for start in range(0, len(clips), clips_per_file):
        with (folder / str(start)).open("wb", buffering=0) as file:
            for maps in clips[start : start + clips_per_file]:
                assert file.write(maps.data) == CLIP_BYTES
            os.fsync(file.fileno())


def extract(folder: Path, clips: Sequence[Clip]) -> FeatureView:
    """float32 features of the corpus in params.yaml, made with its parameters: `dvc repro weights` first."""
    params = read_params()
    config = params.extract.model_copy(update={"dtype": "float32"})
    weights = load_weights(weights_path(params.weights.arch))
    corpora.extract(
        clips,
        root=corpus_root(params.corpus.root),
        folder=folder,
        weights=weights,
        backbone=Backbone(weights, taps=config.taps, device=default_device()),
        config=config,
    )
    return open_view(folder / "features" / config.taps[0])


def layouts(folder: Path, source: FeatureView, num_rounds: int) -> list[Row]:
    """Each dtype and codec: size, and how fast a shard writer takes and a view gives the values."""
    rows = []
    written = folder / "written"
    for dtype in ("float32", "float16"):
        clips = [source.read(name).astype(dtype) for name in source.clip_ids()]
        megabytes = sum(maps.nbytes for maps in clips) / 1e6
        stored_mb: dict[str, float] = {}
        writes: dict[str, Callable[[], None]] = {}
        reads: dict[str, Callable[[], None]] = {}
        for codec in CODECS:
            contract = source.contract.model_copy(update={"dtype": dtype})
            layout = layout_for(StoreConfig(codec=codec), row_shape=source.map_shape, dtype=dtype)
            target = Target(contract, layout)
            journal = folder / f"{dtype}-{codec}"
            write_clips(journal, target, clips)
            view = open_view(publish_clips(folder / f"{codec}-view", target, len(clips), journal=journal))
            for number, maps in enumerate(clips):
                np.testing.assert_array_equal(view.read(clip_id(number)), maps)
            stored_mb[codec] = stored_bytes(view) / 1e6
            writes[codec] = partial(write_clips, written, target, clips)
            reads[codec] = partial(read_all, view)
        read_seconds = alternate(reads, num_rounds=num_rounds)
        write_seconds = alternate(
            writes, num_rounds=num_rounds, before=lambda: shutil.rmtree(written, ignore_errors=True)
        )
        rows += [
            {
                "dtype": dtype,
                "codec": codec,
                "stored_mb": stored_mb[codec],
                "of_its_dtype": stored_mb[codec] / megabytes,
                "write_mb_per_s": megabytes / write_seconds[codec],
                "read_mb_per_s": megabytes / read_seconds[codec],
            }
            for codec in CODECS
        ]
    return rows


def stored_bytes(view: FeatureView) -> int:
    records = [read_record(path) for path in (view.path / "records").iterdir()]
    return sum(int(record.chunks["size_bytes"].sum()) for record in records)


def read_all(view: FeatureView) -> None:
    """One thread, every clip into the same buffer."""
    ids = view.clip_ids()
    buffer = np.empty((max(view.num_frames(name) for name in ids), *view.map_shape), view.dtype)
    for name in ids:
        view.read_into(name, buffer[: view.num_frames(name)])


def accuracy(view: FeatureView, clips: Sequence[Clip], folder: Path) -> list[Row]:
    """Test accuracy of the model of params.yaml, over some seeds, on the same maps in fewer bits."""
    full = keep_resident(view, clips, limit_bytes=1 << 40)
    assert isinstance(full, ResidentFeatures)
    original = full.rows.numpy()
    variants = {
        "float32": original,
        "float16": original.astype(np.float16),
        "int8, simulated": as_int8(original),
    }
    rows = []
    for name, maps in variants.items():
        features = replace(full, rows=torch.from_numpy(maps))
        error = np.linalg.norm(maps.astype(np.float32) - original) / np.linalg.norm(original)
        scores = [test_accuracy(features, clips, seed=seed, folder=folder) for seed in SEEDS]
        rows.append(
            {
                "maps": name,
                "relative_error": f"{error:.1e}",
                "test_accuracy": f"{np.mean(scores):.3f}",
                "by_seed": ", ".join(f"{score:.3f}" for score in scores),
            }
        )
    return rows


def as_int8(maps: np.ndarray) -> np.ndarray:
    """What int8 with one scale a channel leaves of maps (N, C, H, W), as float32."""
    scale = np.abs(maps).max(axis=(0, 2, 3), keepdims=True) / 127
    scale[scale == 0] = 1
    quantised: np.ndarray = np.rint(maps / scale) * scale
    return quantised


def test_accuracy(features: ResidentFeatures, clips: Sequence[Clip], *, seed: int, folder: Path) -> float:
    """Train on the train split, choose the epoch on val, evaluate on test."""
    config = read_params().train.model_copy(update={"seed": seed})
    splits = {split: [clip for clip in clips if clip.split == split] for split in ("train", "val", "test")}
    task = TASK_CLASSES[config.task].from_clips(splits["train"], config)
    model = build_model(
        "recurrent",
        config,
        map_shapes=[features.map_shape],
        num_outputs=task.num_outputs,
        standardisations=[channel_statistics(features, splits["train"])] if config.standardise else None,
        seed=seed,
    )
    device = default_device()
    loaders = {
        split: make_loader(
            features, some, config, device=device, shuffle_seed=seed if split == "train" else None
        )
        for split, some in splits.items()
    }
    state_path = folder / "training.pt"
    state_path.unlink(missing_ok=True)
    member = Member(
        model,
        task=task,
        train=loaders["train"],
        val=loaders["val"],
        config=config,
        device=device,
        state_path=state_path,
    )
    fit_many([member])
    member.result()  # gives the model its best weights
    predictions = answer_batches(model, loaders["test"].epoch(), task=task, device=device)
    outputs, targets, _ = predictions.rows(per_frame=task.facts.per_frame)
    return task.metrics(outputs, targets)["accuracy"]


if __name__ == "__main__":
    main()
