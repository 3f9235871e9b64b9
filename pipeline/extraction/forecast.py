"""Forecasts what a planned run will cost, from a few seconds' look at some of its clips."""

import contextlib
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pipeline.backbone import Backbone, seconds_saved_by_compiling
from pipeline.contract import CENTER
from pipeline.errors import DecodeError
from pipeline.extraction.engine import default_batch_size, default_num_decoders
from pipeline.extraction.lanes import make_lanes
from pipeline.extraction.plan import PlannedClip
from pipeline.extraction.runners import make_runner
from pipeline.extraction.targets import Target
from pipeline.frames import clip_range, probe, read_frames
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine

_COUNT_SECONDS = 1.5
_DECODE_SECONDS = 1.5
_COMPUTE_SECONDS = 2.0

T = TypeVar("T")


@dataclass(frozen=True)
class Forecast:
    """What the planned clips are expected to cost."""

    num_counted: int  # clips whose frames were counted; the others are assumed to have the mean number
    num_frames: int  # decoded
    bytes_by_folder: Mapping[str, int]  # of each tap and view, before compression
    seconds_by_view: Mapping[str, float]  # to compute what lacks in each view
    num_measured: int  # frames that were decoded to learn the rates
    decode_frames_per_second: float  # of one decoder alone
    compute_frames_per_second: float
    seconds: float  # with the config's backend
    seconds_saved_by_other_backend: float  # inductor for eager, or the reverse; negative when it is slower


def make_forecast(
    planned: Sequence[PlannedClip],
    *,
    root: Path,
    targets: Sequence[Target],
    backbone: Backbone,
    config: ExtractConfig,
    machine: Machine = Machine(),
    seed: int = 0,
) -> Forecast | None:
    """Count the frames of some clips, decode some and run the network on them, in about 5 seconds.

    `backbone` has the backend "eager". The clips are chosen at random, by `seed`. Returns None when none of
    them could be decoded.
    """
    order = random.Random(seed).sample(planned, len(planned))
    num_frames_of: dict[bytes, int] = {}
    for clip in _within(_COUNT_SECONDS, order):
        with contextlib.suppress(DecodeError, OSError):
            num_frames_of[clip.key] = probe(
                **clip_range(clip.clip, root=root),
                sampling=config.sampling,
                limits=config.limits,
                preprocessing=config.known_preprocessing,
            ).num_frames
    num_measured, pixels = 0, None
    started = time.monotonic()
    for pixels in _within(_DECODE_SECONDS, _pixels(order, root, config)):
        num_measured += len(pixels)
    decode_seconds = (time.monotonic() - started) / max(num_measured, 1)
    if not num_frames_of or pixels is None:
        return None
    prepare_seconds, row_seconds = _compute_seconds(
        torch.from_numpy(pixels), targets, backbone, config, machine
    )
    rows_of = config.windows.num_rows if config.windows else lambda num_frames: num_frames
    mean_rows = sum(map(rows_of, num_frames_of.values())) / len(num_frames_of)
    mean_frames = sum(num_frames_of.values()) / len(num_frames_of)
    num_frames = round(mean_frames * len(planned))
    bytes_by_folder: dict[str, int] = {}
    clips_by_view: dict[str, set[bytes]] = {}
    for target in targets:
        keys = {clip.key for clip in planned if target.contract.name in clip.targets}
        bytes_by_folder[target.contract.name] = round(mean_rows * len(keys)) * target.layout.row_bytes
        clips_by_view.setdefault(target.contract.view.name, set()).update(keys)
    seconds_by_view = {
        view: len(keys) * (mean_frames * prepare_seconds + mean_rows * row_seconds)
        for view, keys in clips_by_view.items()
    }
    forward_seconds = sum(seconds_by_view.values())
    num_decoders = machine.num_decoders or default_num_decoders(backbone.device)
    if backbone.device.type == "cuda":
        seconds = max(forward_seconds, num_frames * decode_seconds / num_decoders)
    else:  # decoders and network share the cores
        seconds = forward_seconds + num_frames * decode_seconds / torch.get_num_threads()
    saved_seconds = seconds_saved_by_compiling(forward_seconds, device=backbone.device)
    is_compiled = config.backend == "inductor"
    return Forecast(
        num_counted=len(num_frames_of),
        num_frames=num_frames,
        bytes_by_folder=bytes_by_folder,
        seconds_by_view=seconds_by_view,
        num_measured=num_measured,
        decode_frames_per_second=1 / decode_seconds,
        compute_frames_per_second=1 / (prepare_seconds + row_seconds * mean_rows / mean_frames),
        seconds=seconds - (saved_seconds if is_compiled else 0),
        seconds_saved_by_other_backend=-saved_seconds if is_compiled else saved_seconds,
    )


def _compute_seconds(
    pixels: torch.Tensor,
    targets: Sequence[Target],
    backbone: Backbone,
    config: ExtractConfig,
    machine: Machine,
) -> tuple[float, float]:
    """Seconds to preprocess a frame of `pixels` (T, H, W, 3), and to compute a row; each warmed up."""
    runner = make_runner(
        backbone,
        targets,
        preprocessing=config.known_preprocessing,
        batch_size=machine.batch_size or default_batch_size(backbone.device),
        lanes=make_lanes(num_decoders=1),
    )

    runner.prepare(pixels, [CENTER])
    runner.submit()()
    started = time.monotonic()
    runner.prepare(pixels, [CENTER])
    prepare_seconds = (time.monotonic() - started) / len(pixels)
    started = time.monotonic()
    num_batches = sum(runner.submit()() is not None for _ in _within(_COMPUTE_SECONDS, range(1000)))
    return prepare_seconds, (time.monotonic() - started) / (num_batches * len(runner.batch))


def _pixels(clips: Sequence[PlannedClip], root: Path, config: ExtractConfig) -> Iterator[Any]:
    for clip in clips:
        with contextlib.suppress(DecodeError, OSError):
            for batch in read_frames(
                **clip_range(clip.clip, root=root),
                sampling=config.sampling,
                limits=config.limits,
                preprocessing=config.known_preprocessing,
            ):
                yield batch.pixels


def _within(seconds: float, items: Iterable[T]) -> Iterator[T]:
    """Yield items until the time is up, at least one."""
    end = time.monotonic() + seconds
    for item in items:
        yield item
        if time.monotonic() > end:
            return
