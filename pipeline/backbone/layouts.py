"""Layouts: the axes of what a module gives, and the way from there to maps (B, C, h, w)."""

import re
from collections.abc import Iterator
from math import prod

from torch import Tensor

from pipeline.contract import Layout

_MOST_IN_FRONT = 5  # tokens that are no place of the image: a class token, and up to four registers
_TOKENS = re.compile(r"(\d+)\+([\dx]+)")


def possible_layouts(shape: tuple[int, ...], image: tuple[int, ...]) -> list[Layout]:
    """The layouts that an output of `shape`, without the batch, may have.

    `image` is the shape of the network's images (H, W) or clips (T, H, W). Maps are as wide as they are high
    where the image is, and are wider where it is.
    """
    height, width = image[-2:]

    def fits(h: int, w: int) -> bool:
        return h <= height and w <= width and (h == w if height == width else (h - w) * (height - width) >= 0)

    match len(image), shape:
        case _, (_,):
            return ["c"]
        case _, (num_tokens, _):
            return list(_token_layouts(num_tokens, image))
        case 2, (a, b, c):
            return ["chw"] * fits(b, c) + ["hwc"] * fits(a, b)
        case 3, (a, b, c, d):
            return ["cthw"] * (b <= image[0] and fits(c, d)) + ["thwc"] * (a <= image[0] and fits(b, c))
    return []


def _token_layouts(num_tokens: int, image: tuple[int, ...]) -> Iterator[Layout]:
    """Tokens of a grid of patches, with up to five others in front."""
    height, width = image[-2:]
    grids = {(height // side, width // side) for side in range(1, max(height, width) + 1)}
    grids = {(h, w) for h, w in grids if h and w}
    times = sorted({image[0] // step for step in range(1, image[0] + 1)}) if len(image) == 3 else [None]
    for in_front in range(min(_MOST_IN_FRONT, num_tokens - 1) + 1):
        for h, w in sorted(grids):
            for t in times:
                grid = (h, w) if t is None else (t, h, w)
                if prod(grid) == num_tokens - in_front:
                    yield f"{in_front}+{'x'.join(map(str, grid))}"


def told_layout(output: object, shape: tuple[int, ...]) -> Layout | None:
    """The layout of tokens whose module gives their grid (t, h, w) beside them, as MViT's blocks do."""
    match output, shape:
        case (_, (int(t), int(h), int(w))), (num_tokens, _):
            return f"{num_tokens - t * h * w}+{t}x{h}x{w}"
    return None


def tokens_in_front(layout: Layout) -> int:
    """How many tokens are no place of the image; 0 for what are no tokens."""
    return int(found[1]) if (found := _TOKENS.fullmatch(layout)) else 0


def fits_layout(shape: tuple[int, ...], layout: Layout) -> bool:
    """Whether an output of `shape`, without the batch, can have the layout."""
    if found := _TOKENS.fullmatch(layout):
        return len(shape) == 2 and shape[0] == int(found[1]) + prod(map(int, found[2].split("x")))
    return len(shape) == len(layout)


def to_maps(x: Tensor, layout: Layout, *, class_token: bool = False) -> Tensor:
    """A module's output (B, ...) in its layout -> maps (B, C, h, w); those of a clip are means over its time.

    With `class_token`, the first token (B, C, 1, 1) instead.
    """
    if class_token:
        return x[:, 0, :, None, None]
    if found := _TOKENS.fullmatch(layout):
        in_front, grid = int(found[1]), [int(size) for size in found[2].split("x")]
        x = x[:, in_front:].unflatten(1, grid)  # type: ignore[no-untyped-call]
        layout = "thwc" if len(grid) == 3 else "hwc"
    match layout:
        case "c":
            return x[:, :, None, None]
        case "hwc":
            return x.permute(0, 3, 1, 2)
        case "cthw":
            return x.float().mean(dim=2)
        case "thwc":
            return x.float().mean(dim=1).permute(0, 3, 1, 2)
    return x
