"""The checks of what a source may cost, and the error of one whose bytes are not frames."""

from pathlib import Path

from pipeline.contract import Preprocessing
from pipeline.errors import DecodeError
from pipeline.settings.extract import Limits

_MAX_PIXEL_BYTES = 8  # of an image, as stored: four channels of 16 bits


class NotFramesError(Exception):
    """A file's bytes are not frames, for this reason. `read_frames` makes a DecodeError of it."""

    def __init__(self, path: Path, reason: str, *, remedy: str = "Replace or re-encode the file.") -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason
        self.remedy = remedy

    def as_decode_error(self, *, num_recovered: int) -> DecodeError:
        """The error for users; `num_recovered` frames were decoded before it."""
        return DecodeError(
            f"{self.path} can't be decoded: {self.reason} ({num_recovered} frames recovered). {self.remedy}",
            num_recovered=num_recovered,
        )


def check_frame_size(path: Path, *, height: int, width: int, limits: Limits) -> None:
    """Raise NotFramesError for a frame with more pixels than the limits allow."""
    if limits.max_frame_pixels is not None and height * width > limits.max_frame_pixels:
        raise _above(path, f"a frame of {width} x {height} pixels", "max_frame_pixels", limits)


def check_file_size(path: Path, size_bytes: int, *, limits: Limits) -> None:
    """Raise NotFramesError for an image's file that is larger than the largest frame could be."""
    if limits.max_frame_pixels is not None and size_bytes > limits.max_frame_pixels * _MAX_PIXEL_BYTES:
        amount = f"a file of {size_bytes} bytes, {_MAX_PIXEL_BYTES} and more a pixel"
        raise _above(path, amount, "max_frame_pixels", limits)


def check_prepared(
    path: Path, *, height: int, width: int, preprocessing: Preprocessing, limits: Limits
) -> None:
    """Raise NotFramesError for a frame that is smaller than the crop, or above the limits when resized."""
    try:
        resized_height, resized_width = preprocessing.resized_size(height, width)
    except ValueError as error:
        raise NotFramesError(
            path, str(error), remedy="Set preprocessing.resize, or a smaller crop."
        ) from error
    # Columns are resized first: that is the larger of the two where rows become fewer.
    largest = max(height, resized_height) * resized_width
    if limits.max_frame_pixels is not None and largest > limits.max_frame_pixels:
        amount = (
            f"a frame of {width} x {height} pixels, resized to {resized_width} x {resized_height},"
            f" takes {largest} pixels"
        )
        raise _above(path, amount, "max_frame_pixels", limits)


def check_num_frames(path: Path, num_frames: int, *, limits: Limits) -> None:
    """Raise NotFramesError for more frames than the limits allow."""
    if limits.max_source_frames is not None and num_frames > limits.max_source_frames:
        raise _above(path, f"{num_frames} frames", "max_source_frames", limits)


def _above(path: Path, amount: str, name: str, limits: Limits) -> NotFramesError:
    return NotFramesError(
        path,
        f"{amount}: above the limit {name}, {getattr(limits, name)}",
        remedy="If the file is sound, raise the limit and try this clip again.",
    )
