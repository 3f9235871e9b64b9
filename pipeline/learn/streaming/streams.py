"""Streams: features of several taps or networks, which a model reads side by side, frame by frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.contract import FeatureContract
from pipeline.learn.streaming.features import Features

MapShape = tuple[int, int, int]  # (C, H, W)


@dataclass(frozen=True)
class Place:
    """Where a stream's maps are among those of all streams, see `FusedFeatures`."""

    first: int
    map_shape: MapShape  # of the stream
    fused_shape: MapShape

    def take(self, fused: Tensor) -> Tensor:
        """Fused maps (B, T, D, 1, 1) -> the stream's (B, T, C, H, W)."""
        size = math.prod(self.map_shape)
        values = fused.flatten(2)[..., self.first : self.first + size]
        return values.unflatten(2, self.map_shape)  # type: ignore[no-untyped-call,no-any-return]


def places(shapes: Sequence[MapShape]) -> list[Place]:
    """The place of each of several streams, from the shapes of their maps."""
    sizes = [math.prod(shape) for shape in shapes]
    firsts = accumulate(sizes[:-1], initial=0)
    return [Place(first, shape, (sum(sizes), 1, 1)) for first, shape in zip(firsts, shapes, strict=True)]


class FusedFeatures:
    """The features of several streams as one: a frame's map (D, 1, 1) has all values of each stream's map.

    Frames are those of the first stream; of every other stream, each shows the frame that is nearest in time,
    the earlier one of two. Clips are those that all streams have. Values have the dtype that holds all.
    """

    def __init__(self, streams: Sequence[Features]) -> None:
        """`streams` begin with the one that says which frames there are."""
        self.streams = tuple(streams)
        self._places = places([stream.map_shape for stream in streams])

    @property
    def path(self) -> Path:
        """Of the first stream."""
        return self.streams[0].path

    @property
    def contract(self) -> FeatureContract:
        """Of the first stream."""
        return self.streams[0].contract

    @property
    def map_shape(self) -> MapShape:
        """(D, 1, 1)."""
        return self._places[0].fused_shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest that holds the values of all streams."""
        return np.result_type(*(stream.dtype for stream in self.streams))

    def __contains__(self, clip_id: str) -> bool:
        return all(clip_id in stream for stream in self.streams)

    def num_frames(self, clip_id: str) -> int:
        """Frames of the clip in the first stream."""
        return self.streams[0].num_frames(clip_id)

    def frame_seconds(self, clip_id: str) -> np.ndarray:
        """Time (T,) float64 of each frame of the first stream, from the source's start."""
        return self.streams[0].frame_seconds(clip_id)

    def read_into(self, clip_id: str, out: np.ndarray, *, first_frame: int = 0) -> None:
        """Copy maps from `first_frame` on into `out` (T, D, 1, 1), as many as it holds."""
        rows = np.reshape(out, (len(out), -1), copy=False)
        seconds = self.frame_seconds(clip_id)[first_frame : first_frame + len(out)]
        for stream, place in zip(self.streams, self._places, strict=True):
            frames = nearest(
                stream.frame_seconds(clip_id), seconds
            )  # in order, so the ends are first and last
            maps = np.empty((frames[-1] - frames[0] + 1, *stream.map_shape), stream.dtype)
            stream.read_into(clip_id, maps, first_frame=int(frames[0]))
            size = math.prod(stream.map_shape)
            rows[:, place.first : place.first + size] = maps.reshape(len(maps), -1)[frames - frames[0]]


def nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The places (T,) among increasing `times` (N,) that are nearest to the `wanted` ones (T,)."""
    after = np.searchsorted(times, wanted).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    return np.where(wanted - times[before] <= times[after] - wanted, before, after)


def streams_of(features: Features) -> tuple[Features, ...]:
    """The streams of fused features; others are a single stream."""
    return features.streams if isinstance(features, FusedFeatures) else (features,)
