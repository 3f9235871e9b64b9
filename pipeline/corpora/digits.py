"""The embedded corpus: scanned handwritten digits that move over textured backgrounds.

A digit stays inside the frame, and all paths that fit are equally probable. So the places that a digit
visits can tell its axis of motion, but not the sign: a clip is as likely as the same clip played backwards.
A clip keeps its direction or turns once, in the second half of its steps. Its `label`, the direction at the
start, is therefore also the one that it keeps longer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Self

import av
import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import extra
from pipeline.manifest import SPLITS, Clip, FrameLabel, Question

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # (y, x) of a step
NUM_SCANS = 1797  # of scikit-learn's load_digits
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# The i-th scanned digit belongs to the split i % 7: 71 %, 14 %, 14 %.
_SPLIT_CYCLE = ("train", "train", "val", "train", "train", "test", "train")

_LONG_TAIL = {"left": 135, "right": 45, "up": 15, "down": 5}  # train clips of each label


class DigitsConfig(BaseModel):
    """What the corpus looks like; the manifests of the embedded corpus have the default values."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: Annotated[int, Field(ge=0)] = 0
    size: Annotated[int, Field(ge=32, multiple_of=2)] = 64  # height and width of a frame in pixels
    digit_size: Annotated[int, Field(ge=8)] = 24  # height and width of the digit in pixels
    min_frames: Annotated[int, Field(ge=4)] = 10
    max_frames: Annotated[int, Field(ge=4)] = 14  # inclusive
    fps: Annotated[int, Field(ge=1)] = 10
    min_speed: Annotated[float, Field(gt=0)] = 1.5  # pixels per frame
    max_speed: Annotated[float, Field(gt=0)] = 3.0
    turn_share: Annotated[float, Field(ge=0, le=1)] = 0.2  # clips that turn (by 90 degrees) or bounce back

    @model_validator(mode="after")
    def _ranges_are_not_empty(self) -> Self:
        if self.max_frames < self.min_frames:
            raise ValueError(f"max_frames {self.max_frames} is less than min_frames {self.min_frames}")
        if self.max_speed < self.min_speed:
            raise ValueError(f"max_speed {self.max_speed} is less than min_speed {self.min_speed}")
        path, room = self.max_speed * (self.max_frames - 1), self.size - self.digit_size
        if path > room:
            raise ValueError(
                f"max_speed {self.max_speed} moves a digit by {path:g} pixels in {self.max_frames} frames;"
                f" beside a digit of {self.digit_size} a frame of {self.size} has room for {room}"
            )
        return self


def render_clip(index: int, *, config: DigitsConfig) -> tuple[Clip, np.ndarray]:
    """Clip `index` and its frames (T, H, W, 3) uint8 RGB. Its source is '<clip_id>.mp4'.

    Targets: `label`, the direction at the start; `frame_labels`, the direction in which the digit arrived at
    each frame (for the first frame, in which it leaves), so that intervals meet halfway between two frames;
    `values`, the velocity at the start (down, right) in pixels a frame; a caption with both directions;
    questions about the digit and its directions, of which the last is answered yes in half of the clips.
    """
    images, classes = _scans()
    position = index % len(images)
    scan = int(_scan_order(config)[position])
    rng = np.random.default_rng([config.seed, index])

    num_frames = int(rng.integers(config.min_frames, config.max_frames + 1))
    speed = round(float(rng.uniform(config.min_speed, config.max_speed)), 2)
    first, second = rng.permutation(list(DIRECTIONS))[:2].tolist()
    turns = rng.random() < config.turn_share
    turn_step = int(
        rng.integers((num_frames + 1) // 2, num_frames - 1)
    )  # steps before it; at least one after
    num_steps = num_frames - 1
    directions = [first] * num_steps
    if turns:
        directions[turn_step:] = [second] * (num_steps - turn_step)

    mask = _corner_mask(images[scan], config=config)
    steps = speed * np.array([DIRECTIONS[direction] for direction in directions])  # (T - 1, 2)
    path = np.concatenate([np.zeros((1, 2)), steps.cumsum(axis=0)])  # (T, 2)
    room = config.size - config.digit_size
    positions = path + rng.uniform(-path.min(axis=0), room - path.max(axis=0))  # (T, 2)
    masks = np.stack([_moved(mask, y, x) for y, x in positions])[..., None]  # (T, H, W, 1)
    ink = rng.uniform(200, 255, 3)
    frames = _background(rng, size=config.size) * (1 - masks) + ink * masks  # (T, H, W, 3)

    # Drawn last, so that frames do not depend on it: half of the time a direction of the digit.
    others = sorted(DIRECTIONS.keys() - set(directions))
    asked = str(rng.choice(directions if rng.random() < 0.5 else others))

    clip_id = f"digit_{index:05d}"
    turn_seconds, end_seconds = (turn_step + 0.5) / config.fps, num_frames / config.fps
    clip = Clip(
        clip_id=clip_id,
        sources=(f"{clip_id}.mp4",),
        split=_SPLIT_CYCLE[position % len(_SPLIT_CYCLE)],
        group=f"scan_{scan:04d}",
        label=first,
        captions=(f"the digit {NAMES[classes[scan]]} moves {first}{f', then {second}' if turns else ''}",),
        values=tuple((speed * np.array(DIRECTIONS[first])).tolist()),
        frame_labels=(
            (FrameLabel(0.0, turn_seconds, first), FrameLabel(turn_seconds, end_seconds, second))
            if turns
            else (FrameLabel(0.0, end_seconds, first),)
        ),
        questions=(
            Question("which digit?", NAMES[classes[scan]]),
            Question("which way does it move first?", first),
            Question("which way does it move last?", directions[-1]),
            Question(f"does it move {asked}?", "yes" if asked in directions else "no"),
        ),
    )
    return clip, frames.round().astype(np.uint8)


def long_tail(clips: Sequence[Clip]) -> list[Clip]:
    """The clips of `render_clip` without most train clips of some directions: 135, 45, 15 and 5 are left."""
    seen = Counter[tuple[str, str | None]]()
    kept = []
    for clip in clips:
        seen[clip.split, clip.label] += 1
        if clip.split != "train" or seen[clip.split, clip.label] <= _LONG_TAIL[clip.label or ""]:
            kept.append(clip)
    return kept


def fewer(clips: Iterable[Clip], *, num_train: int) -> list[Clip]:
    """The clips without all train clips but the first `num_train`."""
    train = [clip.clip_id for clip in clips if clip.split == "train"]
    left_out = set(train[num_train:])
    return [clip for clip in clips if clip.clip_id not in left_out]


def render_crowd(index: int, *, config: DigitsConfig) -> tuple[Clip, np.ndarray]:
    """Clip `index` of digits that come and go, and its frames (T, H, W, 3) uint8 RGB.

    Its source is '<clip_id>.mp4'. One to three digits, scans of the clip's split, stand in different quarters
    of the frame, each for a time of its own. Targets: `frame_labels`, when each digit is there; `label`, the
    names of all.

    Raises ValueError for a digit that is larger than a quarter.
    """
    room = config.size // 2 - config.digit_size
    if room < 0:
        raise ValueError(f"digit_size {config.digit_size} is more than half of size {config.size}: lower it.")
    images, classes = _scans()
    split = _SPLIT_CYCLE[index % len(_SPLIT_CYCLE)]
    of_split = _scans_of(split, config=config)
    rng = np.random.default_rng([config.seed, index, 3])
    num_frames = int(rng.integers(config.min_frames, config.max_frames + 1))
    frames = np.stack([_background(rng, size=config.size)] * num_frames)  # (T, H, W, 3)
    shown = []
    chosen = rng.choice(of_split, int(rng.integers(1, 4)), replace=False)
    for scan, quarter in zip(chosen, rng.permutation(4).tolist(), strict=False):
        first = int(rng.integers(0, num_frames - 3))
        end = int(rng.integers(first + 4, num_frames + 1))
        y, x = np.array(divmod(quarter, 2)) * (config.size // 2) + rng.uniform(0, room, 2)
        mask = _moved(_corner_mask(images[scan], config=config), y, x)[..., None]  # (H, W, 1)
        frames[first:end] = frames[first:end] * (1 - mask) + rng.uniform(200, 255, 3) * mask
        shown.append(FrameLabel(first / config.fps, end / config.fps, NAMES[classes[scan]]))
    shown.sort(key=lambda item: (item.start_seconds, item.label))
    clip_id = f"crowd_{index:05d}"
    clip = Clip(
        clip_id=clip_id,
        sources=(f"{clip_id}.mp4",),
        split=split,
        label="|".join(dict.fromkeys(item.label for item in shown)),
        frame_labels=tuple(shown),
    )
    return clip, frames.round().astype(np.uint8)


def render_number(index: int, *, config: DigitsConfig) -> tuple[Clip, np.ndarray]:
    """Clip `index` of digits one after another, and its frames (T, H, W, 3) uint8 RGB.

    Its source is '<clip_id>.mp4'. Two to four digits, scans of the clip's split, stand somewhere for two to
    four frames each, with up to two frames without a digit before and after each. Target: a caption, the
    digits' names in their order.
    """
    images, classes = _scans()
    split = _SPLIT_CYCLE[index % len(_SPLIT_CYCLE)]
    rng = np.random.default_rng([config.seed, index, 4])
    chosen = rng.choice(_scans_of(split, config=config), int(rng.integers(2, 5)), replace=False)
    background = _background(rng, size=config.size)  # (H, W, 3)
    frames = [background] * int(rng.integers(0, 3))
    for scan in chosen:
        y, x = rng.uniform(0, config.size - config.digit_size, 2)
        mask = _moved(_corner_mask(images[scan], config=config), y, x)[..., None]  # (H, W, 1)
        shown = background * (1 - mask) + rng.uniform(200, 255, 3) * mask
        frames += [shown] * int(rng.integers(2, 5)) + [background] * int(rng.integers(0, 3))
    clip_id = f"number_{index:05d}"
    clip = Clip(
        clip_id=clip_id,
        sources=(f"{clip_id}.mp4",),
        split=split,
        captions=(" ".join(NAMES[classes[scan]] for scan in chosen),),
    )
    return clip, np.stack(frames).round().astype(np.uint8)


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """The scans (1797, 8, 8), ink 1 on paper 0, and the digits (1797,) that they show."""
    with extra("demo", use="The embedded corpus"):
        from sklearn.datasets import load_digits
    digits = load_digits()
    return digits.images / 16, digits.target


def _scan_order(config: DigitsConfig) -> np.ndarray:
    """All scans, shuffled: position i % NUM_SCANS has the scan that clip i shows, and decides its split."""
    return np.random.default_rng(config.seed).permutation(len(_scans()[0]))


def _scans_of(split: str, *, config: DigitsConfig) -> list[int]:
    """The scans of a split, in the corpus's order."""
    order = enumerate(_scan_order(config).tolist())
    return [scan for position, scan in order if _SPLIT_CYCLE[position % len(_SPLIT_CYCLE)] == split]


def _corner_mask(image: np.ndarray, *, config: DigitsConfig) -> np.ndarray:
    """The ink (H, W), from 0 to 1, of the scan in the upper left corner of a frame."""
    digit = Image.fromarray(image).resize((config.digit_size,) * 2, Image.Resampling.BILINEAR)
    mask = np.zeros((config.size, config.size))
    mask[: config.digit_size, : config.digit_size] = np.asarray(digit)
    return mask


def _moved(image: np.ndarray, y: float, x: float) -> np.ndarray:
    """The image (H, W) moved by (y, x) pixels, with linear interpolation. Its ink must stay inside."""
    for axis, distance in ((0, y), (1, x)):
        whole = int(np.floor(distance))
        part = distance - whole
        image = (1 - part) * np.roll(image, whole, axis) + part * np.roll(image, whole + 1, axis)
    return image


def _background(rng: np.random.Generator, *, size: int) -> np.ndarray:
    """A smooth, faintly coloured texture (H, W, 3), darker than any ink."""
    light = rng.integers(0, 70, (6, 6, 1))
    colour = rng.integers(0, 30, (6, 6, 3))
    texture = Image.fromarray((light + colour).astype(np.uint8))
    return np.asarray(texture.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)


def write_video(path: Path, frames: np.ndarray, *, fps: int) -> None:
    """Encode frames (T, H, W, 3) uint8 as H.264 in MP4, whatever the path's suffix is.

    Equal frames give equal bytes.
    """
    # On frames this small x264's mbtree reads memory that it never wrote: other bytes in each run.
    options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", threads=1)))
        container.mux(stream.encode(None))


def render_image(scan: int, *, config: DigitsConfig) -> tuple[Clip, np.ndarray]:
    """The scanned digit `scan` somewhere on an image (H, W, 3) uint8 RGB. Its source is 'scan_<scan>.png'.

    Targets: `label`, the digit's name; `values`, the digit; a caption that also names the quarter of the
    image that the digit's centre is in; questions about digit and quarter.
    """
    images, classes = _scans()
    rng = np.random.default_rng([config.seed, scan, 1])
    corner = _corner_mask(images[scan], config=config)
    room = config.size - config.digit_size
    y, x = rng.uniform(0, room, 2)
    mask = _moved(corner, y, x)[..., None]  # (H, W, 1)
    pixels = _background(rng, size=config.size) * (1 - mask) + rng.uniform(200, 255, 3) * mask  # (H, W, 3)
    vertical, horizontal = "upper" if y < room / 2 else "lower", "left" if x < room / 2 else "right"
    asked = str(rng.choice(("upper", "lower", "left", "right")))
    position = int(np.argsort(_scan_order(config))[scan])
    clip = Clip(
        clip_id=f"scan_{scan:04d}",
        sources=(f"scan_{scan:04d}.png",),
        split=_SPLIT_CYCLE[position % len(_SPLIT_CYCLE)],
        label=NAMES[classes[scan]],
        captions=(f"the digit {NAMES[classes[scan]]} at the {vertical} {horizontal}",),
        values=(float(classes[scan]),),
        questions=(
            Question("which digit?", NAMES[classes[scan]]),
            Question(f"is it in the {asked} half?", "yes" if asked in (vertical, horizontal) else "no"),
        ),
    )
    return clip, pixels.round().astype(np.uint8)


def image_sets(images: Sequence[Clip], *, num_sets: int, config: DigitsConfig) -> list[Clip]:
    """Clips of two to five images of one split: `num_sets` of them.

    Targets: `values`, the sum of the digits; `label`, the name of the largest.
    """
    by_split = {split: [image for image in images if image.split == split] for split in SPLITS}
    rng = np.random.default_rng([config.seed, 2])
    clips = []
    for index in range(num_sets):
        split = _SPLIT_CYCLE[index % len(_SPLIT_CYCLE)]
        chosen = rng.choice(len(by_split[split]), int(rng.integers(2, 6)), replace=False)
        members = [by_split[split][number] for number in chosen]
        digits = [image.values[0] for image in members]
        clips.append(
            Clip(
                clip_id=f"set_{index:05d}",
                sources=tuple(source for image in members for source in image.sources),
                split=split,
                label=NAMES[int(max(digits))],
                values=(sum(digits),),
            )
        )
    return clips
