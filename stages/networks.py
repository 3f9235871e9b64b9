"""The networks that there are; of one, its taps with their maps' shapes and what computing them costs."""

import argparse
from math import prod

from pipeline.backbone.inspection import Inspection
from pipeline.backbone.networks import build_own, default_size, inspect_network
from pipeline.errors import ConfigError
from pipeline.settings.networks import ARCHS, FAMILIES, check_arch, is_own
from stages import console
from stages.predict import named_code


def main() -> None:
    """Print the families of networks, or the taps of one."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.networks",
        description=__doc__,
        epilog="GMAC are billions of multiplications for an image, or a window of frames, up to the tap; KB"
        " are those of its map as float16. A star marks the taps that are suggested: behind them maps get"
        " smaller. A network of your own is the one that params.yaml names.",
    )
    parser.add_argument("arch", nargs="?", help="a network; without: all families")
    parser.add_argument(
        "--crop", type=_positive, metavar="PIXELS", help="side of the images; by default the network's"
    )
    parser.add_argument(
        "--frames", type=_positive, help="of a window, for networks of clips (16; of your own: single images)"
    )
    parser.add_argument(
        "--all", action="store_true", help="every module, not only those of the first two levels"
    )
    arguments = parser.parse_args()
    if arguments.arch is None:
        for name, family in FAMILIES.items():
            print(f"{name}, reads {'windows of frames' if family.reads_clips else 'images'}:")
            print(f"  networks: {' '.join(family.archs)}\n  suggested taps: {' '.join(family.taps)}")
        return
    inspection, side = _inspect(check_arch(arguments.arch))
    side = arguments.crop or side
    known = ARCHS.get(arguments.arch)
    reads_clips = known.reads_clips if known else bool(arguments.frames)
    image = (arguments.frames or 16, side, side) if reads_clips else (side, side)
    if reason := inspection.watched(image).reason:
        way_out = "--crop or --frames" if reads_clips else "--crop"
        raise ConfigError(
            f"{arguments.arch} can't compute images of this size: {reason}. Give another {way_out}."
        )
    rows = tap_rows(inspection, image, deepest_level=None if arguments.all else 2)
    unit = "window of {} x {} x {}".format(*image) if reads_clips else "image of {} x {}".format(*image)
    print(f"{arguments.arch}: {inspection.num_parameters() / 1e6:.1f} million parameters; for each {unit}:")
    console.print_table(rows)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def _inspect(arch: str) -> tuple[Inspection, int]:
    """A look into the network, and the side of the images that it is built for."""
    if not is_own(arch):
        return (inspection := inspect_network(arch)), default_size(inspection.network)[0]
    own = named_code()
    if own is None or own.name != arch:
        raise ConfigError(
            f"params.yaml does not name {arch}: its code is not imported. Set weights.arch to it."
        )
    network = build_own(own)
    return Inspection(network, arch), default_size(network)[0]


def tap_rows(
    inspection: Inspection, image: tuple[int, ...], *, deepest_level: int | None = None
) -> list[dict[str, str]]:
    """A row for each tap; with `deepest_level`, of modules that have no more names. Raises ConfigError."""
    macs = inspection.macs(image)
    suggested = ARCHS[inspection.arch].taps if inspection.arch in ARCHS else ()
    named = {module: tap for tap, module in inspection.aliases.items()}
    rows = []
    for module in inspection.candidates(image):
        tap = named.get(module, module)
        if deepest_level and module.count(".") >= deepest_level and tap not in suggested:
            continue
        layouts = inspection.possible_layouts(module, image)
        shape = inspection.shape(tap, image).map_shape if len(layouts) == 1 else None
        rows.append(
            {
                "": "*" if tap in suggested else "",
                "tap": tap,
                "module": inspection.kind(module),
                "layout": " or ".join(layouts) or "unknown: declare it",
                "map": "x".join(map(str, shape)) if shape else "",
                "KB": f"{2 * prod(shape) / 1024:.0f}" if shape else "",
                "GMAC": f"{macs[module] / 1e9:.2f}",
            }
        )
    return rows


if __name__ == "__main__":
    console.run(main)
