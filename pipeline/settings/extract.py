"""ExtractConfig: which features are extracted, how they are computed, and how they are stored."""

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, model_validator

from pipeline.contract import (
    CENTER,
    Backend,
    Layout,
    Pooling,
    Precision,
    Preprocessing,
    Sampling,
    StoredDtype,
    Windows,
)
from pipeline.errors import few
from pipeline.settings.views import Views

StoreFormat = Literal["zarr", "hdf5"]
Codec = Literal["none", "lz4", "zstd"]
Damaged = Literal["drop", "keep"]


class Limits(BaseModel):
    """Refuses sources with giant frames or endless clips before memory is taken for them.

    Limits are not part of the contract: they change no frame.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_frame_pixels: PositiveInt | None = 100_000_000  # height times width, resized too; null: no limit
    max_source_frames: PositiveInt | None = 1_000_000  # of a source, or sampled from it; null: no limit


class StoreConfig(BaseModel):
    """How features are stored. Changing it repacks what exists and recomputes nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: StoreFormat = "zarr"  # container of the view
    codec: Codec = "none"  # of each chunk, after a bitshuffle
    rows_per_chunk: PositiveInt | None = None  # null: about 256 KiB, compressed 64 KiB
    shard_mb: Annotated[int, Field(ge=1, le=4096)] = 256  # MiB of a full shard, before compression


def _each_once(taps: tuple[str, ...]) -> tuple[str, ...]:
    if twice := [tap for tap, count in Counter(taps).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} is there several times; name each tap once")
    return taps


Taps = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_each_once)]


class ExtractConfig(BaseModel):
    """Which features, and how they are computed and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    taps: Taps = ("layer4",)  # layers whose maps are kept
    # Of each frame, each with features of its own: center, flip, corners or one of them (top_left, ...),
    # {scale: 0.8}: a part with 0.8 of the crop's sides, enlarged; {scale: 0.8, flip: true}.
    views: Views = (CENTER,)
    sampling: Sampling = Sampling()  # all | every: n | fps: x | count: n; all but count with max_frames: n
    windows: Windows | None = None  # for networks that read several frames at once; null: one
    limits: Limits = Limits()  # what a source may cost at most
    preprocessing: Preprocessing | None = None  # of each frame; null: as the weights were trained
    layouts: dict[str, Layout] = {}  # {tap: axes} of taps whose shape does not tell them, as chw or 1+14x14
    pooling: Pooling = "none"  # over H and W, before storing; cls: a transformer's class token
    dtype: StoredDtype = "float16"  # as stored
    precision: Precision = "float32"  # of the network: float16 and bfloat16 are faster and less exact
    backend: Backend = "eager"  # inductor compiles the network first: pays when the run is long
    damaged: Damaged = "drop"  # clips that can't be decoded to the end; keep: the frames before the damage
    min_frames: PositiveInt = 1  # clips with fewer, or with fewer windows, are left out
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.5  # of clips left out; beyond it extract fails
    store: StoreConfig = StoreConfig()  # how features are stored
    imported: str | None = None  # folder of imported features, which are published; nothing is computed

    @model_validator(mode="after")
    def _views_can_be_made(self) -> Self:
        if CENTER not in self.views:
            raise ValueError("views lack center, whose features all others stand beside; add it")
        prepared = self.preprocessing or Preprocessing()
        if prepared.resize is None and any(view.scale < 1 for view in self.views):
            raise ValueError(
                "a view with a scale needs preprocessing.resize: frames that are not resized show no smaller"
                " part; set it, or take the view out"
            )
        return self

    @model_validator(mode="after")
    def _layouts_are_of_taps(self) -> Self:
        if others := sorted(self.layouts.keys() - {*self.taps}):
            raise ValueError(
                f"layouts names {few(others)}, which is no tap here; take it out, or add it to taps"
            )
        return self

    @property
    def known_preprocessing(self) -> Preprocessing:
        """The preprocessing. Raises ValueError where the weights decide on it, see `with_preprocessing`."""
        if self.preprocessing is None:
            raise ValueError("The preprocessing is that of the weights, which are not read yet.")
        return self.preprocessing

    def with_preprocessing(self, trained: Preprocessing) -> Self:
        """These settings, with the preprocessing that the weights were trained with where they have none."""
        return self if self.preprocessing else self.model_copy(update={"preprocessing": trained})
