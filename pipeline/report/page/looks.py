"""Where a model looked in a clip: weights over time and, where it sees places, over its frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.contract import Preprocessing

# From dark violet over red to yellow, in equal steps of brightness: also for people who see no red.
_COLOURS = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]])


@dataclass(frozen=True)
class Look:
    """The weights of a clip's frames in its answer, or in each word of it."""

    words: tuple[str, ...]  # (S,); ("",) for an answer as a whole
    maps: np.ndarray  # (S, T, h, w) float32, the sum over T, h and w is about 1
    frame_seconds: np.ndarray  # (T,) float64

    @property
    def has_places(self) -> bool:
        """Whether a frame has more than one weight."""
        return bool(self.maps.shape[2] * self.maps.shape[3] > 1)

    def over_time(self, word: int) -> list[float]:
        """The weight of each frame in a word, from 0 to 1, where 1 is the highest of the word."""
        weights = self.maps[word].sum(axis=(1, 2))
        shares: list[float] = (weights / max(float(weights.max()), 1e-9)).round(3).tolist()
        return shares

    def frames_at(self, seconds: Sequence[float]) -> list[int]:
        """The numbers of the frames that are nearest to these times."""
        return [int(np.abs(self.frame_seconds - time).argmin()) for time in seconds]


def overlay(
    frame: Image.Image, weights: np.ndarray, *, highest: float, preprocessing: Preprocessing
) -> Image.Image:
    """The part of a frame that the network sees, coloured by weights (h, w) from 0 to `highest`.

    The frame may be any size; the part follows from its shape, as in extraction.
    """
    seen = network_view(frame, preprocessing)
    bright = np.asarray(
        Image.fromarray((weights / max(highest, 1e-9)).astype(np.float32)).resize(
            seen.size, Image.Resampling.NEAREST
        )
    )
    places = np.linspace(0, 1, len(_COLOURS))
    heat = np.stack([np.interp(bright, places, channel) for channel in _COLOURS.T], axis=-1)
    mixed = 0.45 * np.asarray(seen.convert("RGB")) + 0.55 * heat
    return Image.fromarray(mixed.round().astype(np.uint8))


def network_view(frame: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The centre of a frame that extraction crops, at the frame's own size.

    Without resizing, the crop of a frame that was made smaller for the page is not known: then all of it.
    """
    if preprocessing.resize is None:
        return frame
    height, width = preprocessing.resized_size(frame.height, frame.width)
    crop_height, crop_width = preprocessing.crop_size
    seen_height = frame.height * min(1.0, crop_height / height)
    seen_width = frame.width * min(1.0, crop_width / width)
    left, top = (frame.width - seen_width) / 2, (frame.height - seen_height) / 2
    return frame.crop((round(left), round(top), round(left + seen_width), round(top + seen_height)))
