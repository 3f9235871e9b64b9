"""FeatureContract: everything that determines a feature's value, and nothing else.

Two features with equal contracts, made from equal source bytes, are interchangeable. The contract's
digest is part of every clip's key, it lies in every store and every checkpoint, and whoever reads
features compares it.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

# Raise whenever our own code changes the value of a feature (decoding, resizing, forward pass).
# A test compares golden features and fails when values move without it.
REVISION = 3

Size = tuple[PositiveInt, PositiveInt]
Triple = tuple[float, float, float]
Interpolation = Literal["bilinear", "bicubic"]
Precision = Literal["float32", "float16", "bfloat16"]  # of the network's weights and activations
Backend = Literal["eager", "inductor"]  # inductor: torch.compile
Pooling = Literal["none", "avg", "max", "cls"]  # cls: the class token, of networks that have one
StoredDtype = Literal["float16", "float32"]
Corner = Literal["top_left", "top_right", "bottom_left", "bottom_right"]
# The axes of what a module gives: c, chw, hwc, of a clip cthw or thwc; or tokens, as in 1+14x14: how many are
# in front, and the grid of the others, of a clip 1+8x14x14.
Layout = Annotated[str, Field(pattern=r"^(c|chw|hwc|cthw|thwc|\d+\+\d+x\d+(x\d+)?)$")]


_FORMS = {"every": "n", "fps": "x", "count": "n"}  # of a sampling that is not `all`; one at most
_ONE_FORM = "give one of 'all', " + ", ".join(repr(f"{form}: {value}") for form, value in _FORMS.items())


class Sampling(BaseModel):
    """Which frames of a clip are used: `all`, or one of `every: n`, `fps: x`, `count: n`.

    With `max_frames: n`, at most n frames are used, evenly spaced among those; `count` needs no such cap.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    every: PositiveInt | None = None  # each n-th frame, from the first
    fps: Annotated[float, Field(gt=0)] | None = None  # the frames on screen at k / fps seconds
    count: PositiveInt | None = None  # n frames, evenly spaced over the clip
    max_frames: PositiveInt | None = None  # at most n of these frames, evenly spaced

    @model_validator(mode="before")
    @classmethod
    def _accept_all(cls, value: Any) -> Any:
        if value == "all":
            return {}
        if not isinstance(value, Mapping | Sampling):
            raise ValueError(_ONE_FORM)
        return value

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if sum(getattr(self, form) is not None for form in _FORMS) > 1:
            raise ValueError(_ONE_FORM)
        if self.count is not None and self.max_frames is not None:
            raise ValueError("'count: n' is n frames already: leave 'max_frames' out")
        return self

    @model_serializer
    def _compact(self) -> Any:  # a narrower type would make pydantic warn
        given = {k: v for k, v in self.__dict__.items() if v is not None}
        return given or "all"


class Preprocessing(BaseModel):
    """From a decoded frame (H, W, 3) uint8 to the network's input: resize, centre crop, normalise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize: PositiveInt | Size | None = 256  # shorter side, or (height, width), or null: as decoded
    crop: PositiveInt | Size = 224  # centre crop: a square's side, or (height, width)
    interpolation: Interpolation = "bilinear"  # rounded to uint8 as PIL does
    antialias: bool = True  # when shrinking, as PIL does; false as for torchvision's video networks

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without(_ABSENT_PREPROCESSING, dump(self))

    @property
    def crop_size(self) -> Size:
        """(height, width) of the crop, and of the network's input, in pixels."""
        return self.crop if isinstance(self.crop, tuple) else (self.crop, self.crop)

    def resized_size(self, height: int, width: int) -> Size:
        """(height, width) of a frame of `height` x `width` pixels after resizing, before the crop.

        Raises ValueError for a frame that is not resized and is smaller than the crop.
        """
        if isinstance(self.resize, tuple):
            return self.resize
        if self.resize is not None:
            longer = int(self.resize * max(height, width) / min(height, width))  # torchvision truncates
            return (self.resize, longer) if height <= width else (longer, self.resize)
        crop_height, crop_width = self.crop_size
        if height < crop_height or width < crop_width:
            raise ValueError(
                f"a frame of {width} x {height} pixels is smaller than the crop of {crop_width} x"
                f" {crop_height}"
            )
        return height, width

    @model_validator(mode="after")
    def _resize_covers_crop(self) -> Self:
        if self.resize is not None:
            height, width = self.resize if isinstance(self.resize, tuple) else (self.resize, self.resize)
            if height < self.crop_size[0] or width < self.crop_size[1]:
                raise ValueError(f"resize {self.resize} is smaller than crop {self.crop}")
        return self


class FrameView(BaseModel):
    """The part of a frame that the network sees, and whether it is mirrored; by default the centre crop.

    A view has a name, which stands for it in JSON: `center`, or its parts, such as `flip`, `top_left`,
    `scale0.8` or `top_left-scale0.8-flip`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corner: Corner | None = None  # of the resized frame, where the crop lies; null: its centre
    scale: Annotated[float, Field(ge=0.1, le=1)] = 1.0  # 0.8: a part with 0.8 of the crop's sides, enlarged
    flip: bool = False  # left and right exchanged

    @property
    def name(self) -> str:
        """The view's parts, joined by hyphens."""
        parts = [self.corner, f"scale{self.scale}" if self.scale < 1 else None, "flip" if self.flip else None]
        return "-".join(filter(None, parts)) or "center"

    @model_validator(mode="before")
    @classmethod
    def _accept_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts: dict[str, Any] = {}
        for part in value.split("-"):
            if part in get_args(Corner):
                parts["corner"] = part
            elif part == "flip":
                parts["flip"] = True
            elif part.startswith("scale"):
                parts["scale"] = part.removeprefix("scale")
            elif value != "center":
                raise ValueError(f"it is none of center, flip, {', '.join(get_args(Corner))}, scale0.8")
        return parts

    @model_serializer
    def _as_name(self) -> str:
        return self.name

    def zoomed(self, preprocessing: Preprocessing) -> Preprocessing:
        """The preprocessing whose crop shows the view's part of a frame; unchanged without `resize`."""
        sides = preprocessing.resize
        if self.scale == 1 or sides is None:
            return preprocessing
        resize = (
            (round(sides[0] / self.scale), round(sides[1] / self.scale))
            if isinstance(sides, tuple)
            else round(sides / self.scale)
        )
        return preprocessing.model_copy(update={"resize": resize})

    def place(self, room: tuple[int, int]) -> tuple[int, int]:
        """Top and left of the crop, where the frame is `room` = (rows, columns) larger than the crop."""
        if self.corner is None:
            return round(room[0] / 2), round(room[1] / 2)
        side, end = self.corner.split("_")
        return room[0] * (side == "bottom"), room[1] * (end == "right")


CENTER = FrameView()


class Origin(BaseModel):
    """What is known of features that another program made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_by: str | None = None  # people, a paper, an address
    made_at: str | None = None  # in the words of who imported them
    known: dict[str, str] = {}  # network, weights, window, ...: what their maker says
    axes: str  # of the arrays in the files, such as TD: time, then features
    times: str  # where those of the frames are from
    files_sha256: str  # of the names and sha256 of all files, sorted


# What is not known of such features, in a contract's other fields; no JSON has these values.
_UNKNOWN: dict[str, Any] = {
    "revision": 0,
    "sampling": "all",
    "decode": "pyav-rgb24",
    "preprocessing": {"resize": None, "crop": 1},
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "arch": "unknown",
    "weights_sha256": "",
    "precision": "float32",
    "backend": "eager",
    "pooling": "none",
}


class Windows(BaseModel):
    """For networks that read several frames at once: the frames of a row, and how far apart rows are.

    Row k is centred on the clip's frame k * stride, and has its time. Beyond the clip's ends, the first and
    the last frame are repeated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    frames: PositiveInt = 16  # of a window, after sampling
    stride: PositiveInt = 8  # frames from a row to the next

    def num_rows(self, num_frames: int) -> int:
        """The rows of a clip with so many frames, one at least."""
        return -(-num_frames // self.stride)


class FeatureContract(BaseModel):
    """What the features of one tap and view were made with. Equal digest <=> interchangeable features.

    A field that is younger than stores is left out of JSON where it has its default: older digests stand.

    Features that another program made have a foreign contract: their name in place of a tap, dtype and
    origin. Nothing else is known of them, and nothing else is in its JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: int = REVISION
    sampling: Sampling
    decode: Literal["pyav-rgb24"] = "pyav-rgb24"  # decoder and colour conversion
    preprocessing: Preprocessing
    mean: Triple  # of RGB in [0, 1], from the weights file
    std: Triple
    arch: str
    weights_sha256: str
    code: str | None = None  # of one's own network: the sha256 of its code, or package==version
    precision: Precision = "float32"
    backend: Backend = "eager"
    tap: str
    layout: Layout | None = None  # of the tap's module, where it is declared
    pooling: Pooling = "none"  # over H and W, before storing
    dtype: StoredDtype = "float16"  # as stored
    view: FrameView = CENTER  # of each frame
    windows: Windows | None = None  # null: a row is a frame
    foreign: Origin | None = None  # of features that another program made

    @model_validator(mode="before")
    @classmethod
    def _fill_unknown(cls, values: Any) -> Any:
        return {**_UNKNOWN, **values} if isinstance(values, Mapping) and values.get("foreign") else values

    @property
    def name(self) -> str:
        """The name of the features' folder: the tap, and behind an @ the view, if it is not the centre."""
        return self.tap if self.view == CENTER else f"{self.tap}@{self.view.name}"

    @model_serializer(mode="wrap")
    def _without_absent(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values = _without(_ABSENT, dump(self))
        return {key: value for key, value in values.items() if not (self.foreign and key in _UNKNOWN)}

    def digest(self) -> str:
        """Hex sha256 of the canonical JSON."""
        return _digest(self.model_dump(mode="json"))

    def forward_digest(self) -> str:
        """Hex sha256 of what all taps and views of a run share: they are computed together."""
        return _digest(self.model_dump(mode="json", exclude={"tap", "layout", "pooling", "dtype", "view"}))

    def differences(self, other: "FeatureContract") -> dict[str, tuple[Any, Any]]:
        """Fields that differ, as {field: (here, there)}; fields of `preprocessing` have a dotted name."""
        here, there = _flatten(self.model_dump(mode="json")), _flatten(other.model_dump(mode="json"))
        return {k: (here.get(k), there.get(k)) for k in {**here, **there} if here.get(k) != there.get(k)}


# Fields and values that JSON leaves out.
_ABSENT: list[tuple[str, Any]] = [
    ("code", None),
    ("layout", None),
    ("view", CENTER.name),
    ("windows", None),
    ("foreign", None),
]
_ABSENT_PREPROCESSING: list[tuple[str, Any]] = [("antialias", True)]


def _without(absent: list[tuple[str, Any]], values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if (key, value) not in absent}


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _flatten(value: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for key, item in value.items():
        if key == "preprocessing":
            flat.update({f"{key}.{k}": v for k, v in item.items()})
        else:
            flat[key] = item
    return flat
