"""Extraction: against the network alone, against the loop that everyone writes first, and its memory."""

import shutil
import statistics
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import av
import h5py
import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import transforms

from benchmarks.corpora import (
    FULL_SIZE,
    VIDEO,
    copy_video,
    default_device,
    encode_smaller,
    extract,
    make_weights,
)
from benchmarks.decoding import tiny_rates
from benchmarks.report import Report, Row, alternate, arguments, in_fresh_process, return_freed_memory
from pipeline.backbone import Backbone, Weights, preprocess
from pipeline.contract import Backend, Sampling
from pipeline.extraction.engine import default_batch_size
from pipeline.frames import read_frames
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.store import open_view
from pipeline.system.memory import keep_freed_memory

ARCH = "resnet50"
QUICK_ARCH = "resnet18"
BACKENDS: tuple[Backend, ...] = ("eager", "inductor")


def main() -> None:
    args = arguments(__doc__)
    report = Report("extract", args.quick)
    weights = make_weights(QUICK_ARCH if args.quick else ARCH)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        small = encode_smaller(VIDEO, Path(name) / "small.mp4", width=640, height=272)
        rows = []
        for backend in BACKENDS[: 1 if args.quick else None]:
            backbone = Backbone(weights, taps=["layer4"], device=default_device(), backend=backend)
            for video, target in ((small, 0.95), (VIDEO, 0.88)):
                folder = Path(name) / f"{backend}-{video.stem}"
                rows.append(overlap(folder, video, weights, backbone, quick=args.quick, target=target))
        tiny = tiny_rates(Path(name) / "tiny", num_threads=(1, 2, 4, 8, 16))
        report.add("Decoding tiny videos: the cost of a frame and of an opened file", tiny)
        row = kept(weights, quick=args.quick)
        report.add("The network alone, with freed memory returned to the kernel or kept", [row])
        report.add("From corpus to store, relative to the network alone on frames in memory", rows)
        rows = [
            *naive_rows(Path(name) / "video", weights, quick=args.quick, images=False),
            *naive_rows(Path(name) / "images", weights, quick=args.quick, images=True),
        ]
        report.add("Against the loop that everyone writes first", rows)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        report.add("Memory", memory(Path(name), quick=args.quick))
    report.write(args.json)


def kept(weights: Weights, *, quick: bool) -> Row:
    """The network at 224 on the CPU, with glibc's defaults and as stages run."""
    backbone = Backbone(weights, taps=["layer4"], device=torch.device("cpu"))
    batch = torch.zeros(32, 3, 224, 224, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)

    def returned() -> None:
        return_freed_memory()
        forward()

    def kept() -> None:
        keep_freed_memory()
        forward()

    def forward() -> None:
        for _ in range(4):
            backbone(batch)

    kept()
    seconds = alternate({"returned": returned, "kept": kept}, num_rounds=1 if quick else 5)
    return {
        "returned_frames_per_s": 4 * len(batch) / seconds["returned"],
        "kept_frames_per_s": 4 * len(batch) / seconds["kept"],
        "speed_up": seconds["returned"] / seconds["kept"],
    }


def overlap(
    folder: Path, video: Path, weights: Weights, backbone: Backbone, *, quick: bool, target: float
) -> Row:
    """The engine against the network alone, in full batches: the cost of padding depends on the corpus.

    `ratio_without_plan` leaves out planning and publishing, which a long run, too, does once. On a CPU,
    decoding and resizing take their time from the network's cores: `possible_ratio` is that of a run that
    does nothing else.
    """
    batch_size = default_batch_size(backbone.device)
    # Four or sixteen batches, of the first 128 frames of each clip.
    num_clips = max(1, batch_size // 32) * (1 if quick else 4)
    clips = [
        replace(clip, end_seconds=5.119) for clip in copy_video(video, folder / "corpus", num_clips=num_clips)
    ]
    num_frames = 128 * len(clips)
    config = ExtractConfig(preprocessing=FULL_SIZE, backend=backbone.backend)
    (frames,) = [batch.pixels for batch in read_frames([video], sampling=Sampling(count=16))]
    pixels = preprocess(torch.from_numpy(frames), FULL_SIZE)
    batch = pixels.repeat(batch_size // len(pixels), 1, 1, 1).contiguous(memory_format=torch.channels_last)
    batch = batch.to(backbone.device)

    def forward() -> None:
        for _ in range(num_frames // batch_size):
            backbone(batch)
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()

    def engine() -> None:
        result = extract(
            clips,
            root=folder / "corpus",
            folder=folder / "out",
            weights=weights,
            backbone=backbone,
            config=config,
        )
        assert result.num_frames == num_frames, result
        run_seconds.append(result.seconds)

    run_seconds: list[float] = []
    backbone(batch)
    seconds = alternate(
        {"forward": forward, "engine": engine},
        num_rounds=1 if quick else 3,
        before=lambda: shutil.rmtree(folder / "out", ignore_errors=True),
    )
    with av.open(video) as container:
        size = f"{container.streams.video[0].width}x{container.streams.video[0].height}"
    beside = None
    if backbone.device.type == "cpu":
        beside = (decode_seconds(video) / torch.get_num_threads(), resize_seconds(frames))
    forward_seconds = seconds["forward"] / num_frames
    return {
        "video": size,
        "backend": backbone.backend,
        "device": str(backbone.device),
        "forward_frames_per_s": num_frames / seconds["forward"],
        "framecache_frames_per_s": num_frames / seconds["engine"],
        "ratio": seconds["forward"] / seconds["engine"],
        "target": f">= {target}",
        "ratio_without_plan": seconds["forward"] / statistics.median(run_seconds),
        "decode_ms": beside and 1000 * beside[0],
        "resize_ms": beside and 1000 * beside[1],
        "possible_ratio": beside and forward_seconds / (forward_seconds + sum(beside)),
    }


def decode_seconds(video: Path) -> float:
    """CPU seconds of decoding a frame."""
    started, num_frames = time.process_time(), 0
    for _ in range(3):
        num_frames += sum(len(batch.pixels) for batch in read_frames([video], sampling=Sampling()))
    return (time.process_time() - started) / num_frames


def resize_seconds(frames: np.ndarray) -> float:
    """Seconds of resizing and cropping a frame, on all cores, of frames (T, H, W, 3) uint8."""
    pixels = torch.from_numpy(frames)
    seconds = alternate({"resize": lambda: preprocess(pixels, FULL_SIZE)}, num_rounds=5)
    return seconds["resize"] / len(frames)


def naive_rows(folder: Path, weights: Weights, *, quick: bool, images: bool) -> list[Row]:
    """Mean features of short clips: one after the other in plain torch, and through the engine."""
    corpus = folder / "corpus"
    device = default_device()
    num_frames = 32 if quick else 64  # full batches: the cost of padding depends on the corpus
    clips = [
        replace(clip, end_seconds=num_frames / 25 - 0.001) for clip in copy_video(VIDEO, corpus, num_clips=1)
    ]
    if images:
        clips = [as_images(clip, corpus, num_frames=num_frames) for clip in clips]
    network = torchvision.models.get_model(weights.arch, weights=None)
    network.load_state_dict(weights.state, strict=False)
    network = torch.nn.Sequential(*list(network.children())[:-1]).eval().to(device)
    config = ExtractConfig(taps=("avgpool",), preprocessing=FULL_SIZE, dtype="float32")

    def engine(backbone: Backbone) -> None:
        keep_freed_memory()
        extract(
            clips,
            root=corpus,
            folder=folder / "out",
            weights=weights,
            backbone=backbone,
            config=config.model_copy(update={"backend": backbone.backend}),
        )

    read = image_frames if images else video_frames
    contenders: dict[str, Callable[[], None]] = {
        name: partial(naive, clips, corpus, folder / "out", network, weights, read, save)
        for name, save in {"loop, np.save": save_npy, "loop, h5py": save_h5}.items()
    }
    backbones = {
        backend: Backbone(weights, taps=["avgpool"], device=device, backend=backend)
        for backend in BACKENDS[: 1 if quick else None]
    }
    for backend, backbone in backbones.items():
        contenders[f"framecache, {backend}"] = partial(engine, backbone)
    before = partial(shutil.rmtree, folder / "out", ignore_errors=True)
    contenders["loop, np.save"]()
    expected = {clip.clip_id: np.load(folder / "out" / f"{clip.clip_id}.npy") for clip in clips}
    for backbone in backbones.values():
        before()
        engine(backbone)
        with open_view(folder / "out/features/avgpool") as view:
            for clip_id, maps in expected.items():
                error = np.linalg.norm(view.read(clip_id)[:, :, 0, 0] - maps) / np.linalg.norm(maps)
                assert error < 0.02, error  # resizing rounds otherwise
    seconds = alternate(contenders, num_rounds=1 if quick else 3, before=before)
    total = len(clips) * num_frames
    return [
        {
            "corpus": "JPEG images, 1280x720" if images else "video, 1280x720",
            "how": name,
            "device": str(device),
            "frames_per_s": total / seconds[name],
            "speed_up": seconds["loop, np.save"] / seconds[name],
        }
        for name in contenders
    ]


def as_images(clip: Clip, corpus: Path, *, num_frames: int) -> Clip:
    """The clip's frames as a folder of JPEG files."""
    (corpus / clip.clip_id).mkdir()
    for number, image in zip(range(num_frames), video_frames(corpus, clip), strict=False):
        image.save(corpus / clip.clip_id / f"{number:04d}.jpg", quality=95)
    return Clip(clip.clip_id, (clip.clip_id,), "train")


def video_frames(corpus: Path, clip: Clip) -> Iterator[Image.Image]:
    with av.open(corpus / clip.sources[0]) as container:
        for frame in container.decode(video=0):
            if clip.end_seconds is not None and frame.time >= clip.end_seconds:
                break
            yield frame.to_image()


def image_frames(corpus: Path, clip: Clip) -> Iterator[Image.Image]:
    for path in sorted((corpus / clip.sources[0]).iterdir()):
        yield Image.open(path).convert("RGB")


def naive(
    clips: Sequence[Clip],
    corpus: Path,
    out: Path,
    network: torch.nn.Module,
    weights: Weights,
    read: Callable[[Path, Clip], Iterator[Image.Image]],
    save: Callable[[Path, str, np.ndarray], None],
) -> None:
    """As people do it: for each image open, resize, normalise, batch of one, forward, mean, append."""
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(weights.mean, weights.std),
        ]
    )
    return_freed_memory()
    device = next(network.parameters()).device
    out.mkdir()
    for clip in clips:
        features = []
        for image in read(corpus, clip):
            with torch.no_grad():
                maps = network(transform(image).unsqueeze(0).to(device))
            features.append(maps.mean(dim=[2, 3]).squeeze(0).cpu().numpy())
        save(out, clip.clip_id, np.stack(features))


def save_npy(out: Path, clip_id: str, features: np.ndarray) -> None:
    np.save(out / f"{clip_id}.npy", features)


def save_h5(out: Path, clip_id: str, features: np.ndarray) -> None:
    with h5py.File(out / "features.h5", "a") as file:
        file[clip_id] = features


PEAK = textwrap.dedent("""
    import sys
    from pathlib import Path
    import torch
    from benchmarks.corpora import copy_video, encode_grey, extract, make_weights
    from benchmarks.report import peak_mb
    from pipeline.backbone import Backbone
    from pipeline.contract import Preprocessing
    from pipeline.settings.extract import ExtractConfig
    from pipeline.system.memory import keep_freed_memory

    keep_freed_memory()
    folder, seconds, num_clips = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    weights = make_weights("resnet18")
    backbone = Backbone(weights, taps=["layer4"], device=torch.device("cpu"))
    config = ExtractConfig(preprocessing=Preprocessing(resize=32, crop=32))

    def run(name, seconds, num_clips):
        video = encode_grey(folder / name / "video.mp4", seconds=seconds)
        clips = copy_video(video, folder / name / "corpus", num_clips=num_clips)
        return extract(clips, root=folder / name / "corpus", folder=folder / name, weights=weights,
                       backbone=backbone, config=config)

    run("short", 10, 1)
    before = peak_mb()
    result = run("long", seconds, num_clips)
    print(peak_mb() - before, result.num_frames)
""")


def memory(folder: Path, *, quick: bool) -> list[Row]:
    """Peak memory of a run beyond that of a 10-second video before it, in the same process."""
    runs = ((300, 1), (10, 30)) if quick else ((7200, 1), (10, 720))
    rows: list[Row] = []
    for seconds, num_clips in runs:
        grown_mb, num_frames = in_fresh_process(PEAK, folder / str(seconds), seconds, num_clips)
        rows.append(
            {
                "videos": num_clips,
                "seconds_each": seconds,
                "frames": int(num_frames),
                "memory_grows_by_mb": grown_mb,
                "target": "< 32",
            }
        )
        shutil.rmtree(folder / str(seconds))
    return rows


if __name__ == "__main__":
    main()
