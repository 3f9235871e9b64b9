"""A network of each family: its speed beside ResNet-50's on this machine, its features' size, and what works.

One image of 224 pixels at a time, or one window of 16 frames; with `--compile` also whether inductor compiles
it, which takes a minute a network. With `--by-hand` instead, of every network: how far its taps are from
torchvision's modules called by hand.
"""

import argparse
import statistics
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.corpora import default_device
from benchmarks.gpu import synchronise
from benchmarks.report import Report, Row, seconds_of
from pipeline.backbone import Backbone
from pipeline.backbone.tails import tail_module
from pipeline.errors import PipelineError
from pipeline.settings.networks import ARCHS, FAMILIES
from tests.support.by_hand import tapped
from tests.support.networks import made_up_weights

REFERENCE = "resnet50"
NUM_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archs", nargs="*", help="networks (default: the first of each family)")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--by-hand", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    report = Report("networks", quick=False)
    if args.by_hand:
        report.add("Taps against modules called by hand", list(map(by_hand, args.archs or ARCHS)))
        report.write(args.json)
        return
    archs = args.archs or [family.archs[0] for family in FAMILIES.values()]
    reference = opened(REFERENCE, ARCHS[REFERENCE].taps[-1:])
    report.add("Networks", [row_of(arch, reference, compiled=args.compile) for arch in archs])
    report.write(args.json)


def opened(arch: str, taps: Any, **options: Any) -> Backbone:
    num_frames = 16 if ARCHS[arch].reads_clips else None
    return Backbone(
        made_up_weights(arch), taps=taps, device=default_device(), num_frames=num_frames, **options
    )


def pixels_for(backbone: Backbone) -> Tensor:
    shape = (1, 3, *((backbone.num_frames,) if backbone.num_frames else ()), 224, 224)
    return torch.randint(0, 256, shape, dtype=torch.uint8, device=backbone.device)


def row_of(arch: str, reference: Backbone, *, compiled: bool) -> Row:
    taps = ARCHS[arch].taps
    backbone = opened(arch, taps[-1:])
    times: dict[Backbone, list[float]] = {backbone: [], reference: []}
    for _ in range(NUM_ROUNDS + 1):
        for network, seconds in times.items():
            seconds.append(seconds_of(lambda network=network: run(network)))  # type: ignore[misc]
    ours, theirs = (statistics.median(seconds[1:]) for seconds in times.values())
    num_frames = backbone.num_frames or 1
    deepest = next(tap for tap in reversed(taps) if tap != "avgpool")
    channels, height, width = opened(arch, [deepest]).map_shape(deepest, 224, 224)
    row: Row = {
        "network": arch,
        "frames_per_s_of_resnet50": theirs * num_frames / ours,
        "deepest_map": f"{deepest} {channels}x{height}x{width}",
        "kb_a_row": channels * height * width * 2 / 1024,
        "192x256": works(lambda: opened(arch, taps[-2:-1], crop=(192, 256)).map_shape(taps[-2], 192, 256)),
        "tail": works(lambda: tail_module(arch, after=taps[-3], until=taps[-2])),
        "export": works(lambda: torch.export.export(backbone.trunk, (pixels_for(backbone),))),
    }
    if compiled:
        torch.compiler.reset()  # networks share code, which is compiled only so many times
        row["compile"] = works(lambda: run(opened(arch, taps[-1:], backend="inductor")))
    print(row, flush=True)
    return row


def by_hand(arch: str) -> Row:
    """The largest distances of a tap's maps from those by hand, relative to these."""
    found = tapped(arch).values()
    row: Row = {
        "network": arch,
        "taps": len(found),
        "with equal bits": sum(torch.equal(maps, folded) for maps, folded, _ in found),
        "distance": max(float((maps - folded).norm() / folded.norm()) for maps, folded, _ in found),
        "of folding": max(float((folded - plain).norm() / plain.norm()) for _, folded, plain in found),
    }
    print(row, flush=True)
    return row


def run(backbone: Backbone) -> None:
    backbone(pixels_for(backbone))
    synchronise(backbone.device)


def works(try_it: Any) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try_it()
    except (PipelineError, RuntimeError, ValueError) as error:
        return "" if isinstance(error, PipelineError) else f"{type(error).__name__}"
    return "yes"


if __name__ == "__main__":
    main()
