"""Corpora to measure extraction on, and the extraction of one."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import torch

from pipeline.backbone import Backbone, Weights
from pipeline.backbone.sources import obtain_weights
from pipeline.contract import Preprocessing
from pipeline.extraction import Result, compute_clips, make_plan, make_targets, publish_view
from pipeline.manifest import Clip
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.settings.weights import WeightsConfig
from pipeline.store import Journal
from tests.support.extraction import sources_of

VIDEO = Path(__file__).parent.parent / "tests/data/bigbuckbunny.mp4"  # 1280x720
VIDEO_FRAMES = 132

FULL_SIZE = Preprocessing(resize=256, crop=224)


def make_weights(arch: str) -> Weights:
    """Random: as fast as trained ones."""
    return obtain_weights(WeightsConfig(arch=arch, source="random:0"))


def copy_video(source: Path, folder: Path, *, num_clips: int) -> list[Clip]:
    """Copies of a video with contents of their own: each ends with another `free` box (ISO 14496-12)."""
    folder.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes()
    clips = []
    for number in range(num_clips):
        name = f"{number:05d}{source.suffix}"
        (folder / name).write_bytes(data + struct.pack(">I4sI", 12, b"free", number))
        clips.append(Clip(clip_id=f"clip{number:05d}", sources=(name,), split="train"))
    return clips


def encode_smaller(source: Path, path: Path, *, width: int, height: int) -> Path:
    """The video scaled to another size, as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(source) as original, av.open(path, "w") as smaller:
        frames = original.decode(video=0)
        stream = smaller.add_stream("libx264", rate=original.streams.video[0].average_rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            smaller.mux(stream.encode(frame.reformat(width, height, "yuv420p")))
        smaller.mux(stream.encode(None))
    return path


def encode_grey(path: Path, *, seconds: float, fps: int = 25, side: int = 32) -> Path:
    """A small video of any length: ten encoded seconds whose packets repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    num_frames = 10 * fps
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"bf": "0", "g": str(num_frames)})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        packets = []
        for number in range(num_frames):
            frame = av.VideoFrame(side, side, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([number % 256]) * plane.buffer_size)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for number in range(round(seconds * fps)):
            packet = packets[number % num_frames]
            packet.pts = packet.dts = number
            packet.time_base = Fraction(1, fps)
            packet.stream = stream
            container.mux(packet)
    return path


def extract(
    clips: Sequence[Clip],
    *,
    root: Path,
    folder: Path,
    weights: Weights,
    backbone: Backbone,
    config: ExtractConfig,
    machine: Machine = Machine(),
) -> Result:
    """From a corpus to a published view in `folder`, with a journal that is new."""
    targets = make_targets(config, weights, backbone)
    journal = Journal(folder / "journal")
    sources = sources_of(clips, root=root, digests=journal.digest_cache())
    todo = make_plan(clips, sources=sources, targets=targets, journal=journal)
    assert len(todo.to_extract) == len(clips)
    result = compute_clips(
        todo.to_extract,
        root=root,
        targets=targets,
        backbone=backbone,
        journal=journal,
        config=config,
        machine=machine,
    )
    assert result.num_clips == len(clips), result
    publish_view(todo.keys, targets=targets, journal=journal, path=folder / "features")
    return result


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
