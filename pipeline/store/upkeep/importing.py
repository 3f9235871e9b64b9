"""Import: features of other programs become a view, whose contract says what is known of them."""

import csv
import hashlib
import io
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from pipeline.contract import FeatureContract, Origin
from pipeline.errors import ConfigError, FeatureFileError, StoreError, UnknownTimesError, few
from pipeline.settings.extract import StoreConfig
from pipeline.store.clips import stored_clips
from pipeline.store.format.finite import row_peaks
from pipeline.store.format.layout import layout_for
from pipeline.store.format.records import ClipSource
from pipeline.store.journal import Journal
from pipeline.store.shards import ShardWriter, committing
from pipeline.store.upkeep.foreign import ForeignClip
from pipeline.store.view import TapView, publish
from pipeline.system.files import make_folder, partial_path

log = logging.getLogger(__name__)

FILES = "imported.csv"  # in the view's folder: the file of each clip, and its sha256
_QUARANTINE = b"clip_id,source,reason,num_recovered,policy\n"  # nothing is left out


@dataclass(frozen=True)
class Times:
    """When the features of a clip are, where its file does not say it."""

    rate: float | None = None  # features a second, the first at `first_seconds`
    first_seconds: float = 0.0
    durations: Mapping[str, float] = field(default_factory=dict)  # of clips in seconds, in equal parts

    @property
    def text(self) -> str:
        """For the contract of the features."""
        if self.rate is not None:
            return f"of the files, or {self.rate:g} a second from {self.first_seconds:g} s on"
        return "of the files, or equal parts of the clips' durations"

    def of(self, clip: ForeignClip, num_frames: int) -> np.ndarray:
        """Times (T,) float64 of a clip's frames. Raises FeatureFileError, UnknownTimesError."""
        seconds = clip.load_seconds()
        if seconds is None:
            if self.rate is not None:
                return self.first_seconds + np.arange(num_frames) / self.rate
            if clip.clip_id in self.durations:
                return (np.arange(num_frames) + 0.5) * self.durations[clip.clip_id] / num_frames
            raise UnknownTimesError(f"{clip.file} does not say when the frames of {clip.clip_id} are shown.")
        if seconds.shape != (num_frames,):
            raise FeatureFileError(
                f"{clip.file}: {clip.clip_id} has {num_frames} frames, and times of shape {seconds.shape}."
            )
        seconds = seconds.astype(np.float64)
        if not np.isfinite(seconds).all() or (np.diff(seconds) <= 0).any():
            raise FeatureFileError(f"{clip.file}: the times of {clip.clip_id} do not increase.")
        return seconds


def import_clips(
    clips: Sequence[ForeignClip],
    out: Path,
    *,
    name: str,
    origin: Mapping[str, Any],
    times: Times,
    axes: str | None = None,
    lengths: Mapping[str, int] | None = None,
    on_clip: Callable[[], object] = lambda: None,
) -> FeatureContract:
    """Write the view `out`/`name` of the clips; the contract that it has.

    Rows keep their bits in float16 and float32; other numbers become float32. `axes` is one of AXES; None: as
    the shapes tell, and `lengths`, the number of frames of some clips. `origin` has made_by,
    made_at and known of Origin.

    Raises FeatureFileError for files that can't be read or do not fit each other, ConfigError for a name that
    is no name of a folder, StoreError when `out` exists.
    """
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"{name!r} can't name features. Use letters, digits, '_', '-' and '.'.")
    if out.exists():
        raise StoreError(f"{out} exists. Give another name, or remove it.")
    axes, dtype = _form(clips, axes, lengths or {})
    digests = {file: _sha256(file) for file in dict.fromkeys(clip.file for clip in clips)}
    listed = "".join(sorted(f"{file.name} {digest}\n" for file, digest in digests.items()))
    contract = FeatureContract.model_validate(
        {
            "tap": name,
            "dtype": dtype,
            "foreign": Origin(
                **origin,
                axes=axes,
                times=times.text,
                files_sha256=hashlib.sha256(listed.encode()).hexdigest(),
            ),
        }
    )
    make_folder(out.parent)
    folder = partial_path(out.with_name(f"{out.name}-journal"))  # `publish` removes partials of `out`
    try:
        journal = Journal(folder)
        row_shape = to_maps(clips[0].load(), axes).shape[1:]
        layout = layout_for(StoreConfig(), row_shape=row_shape, dtype=dtype)
        writer = ShardWriter(
            journal.directory(contract, layout), contract=contract, layout=layout, commit_seconds=1e9
        )
        keys = {}
        with committing(writer):
            for clip in clips:
                key = xxhash.xxh3_128_digest(f"{digests[clip.file]} {clip.clip_id}".encode())
                keys[clip.clip_id] = key
                with np.errstate(over="ignore"):  # becomes infinite
                    rows = to_maps(clip.load(), axes).astype(dtype)
                seconds = times.of(clip, len(rows))
                unfit = ~np.isfinite(row_peaks(rows.astype(np.float32)))
                if unfit.any():
                    raise FeatureFileError(
                        f"{clip.file}: frame {unfit.argmax()} of {clip.clip_id} has NaN, infinity, or a value"
                        f" beyond {dtype}."
                    )
                writer.append(ClipSource(key, clip.clip_id, clip.file.name), rows, seconds, final=True)
                on_clip()
        records = journal.records(contract, layout)
        stored = stored_clips(records.values())
        view = TapView(contract, layout, {clip_id: stored[key] for clip_id, key in keys.items()}, records)
        files = {"quarantine.csv": _QUARANTINE, FILES: _listing(clips, digests)}
        publish(journal, [view], out, files=files)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return contract


def to_maps(array: np.ndarray, axes: str) -> np.ndarray:
    """A clip's array with these axes as (T, C, H, W); D features are D channels of one place."""
    order = [axes.index(axis) for axis in ("TD" if "D" in axes else "TCHW")]
    maps = array.transpose(order)
    return maps.reshape(*maps.shape, 1, 1) if "D" in axes else maps


def _form(clips: Sequence[ForeignClip], axes: str | None, lengths: Mapping[str, int]) -> tuple[str, str]:
    """(axes, dtype as stored) of all clips. Raises FeatureFileError where they do not fit each other."""
    shapes, dtypes = {}, set()
    for clip in clips:
        array = clip.load()
        shapes[clip.clip_id] = array.shape
        dtypes.add(array.dtype.newbyteorder("="))
    axes = axes or infer_axes(shapes, lengths)
    for clip in clips:
        shape = shapes[clip.clip_id]
        if len(shape) != len(axes) or 0 in shape:
            raise FeatureFileError(
                f"{clip.file}: {clip.clip_id} has the shape {shape}, not ({', '.join(axes)})."
            )
    rows: dict[tuple[int, ...], str] = {}
    for clip_id, shape in shapes.items():
        rows.setdefault(tuple(n for n, axis in zip(shape, axes, strict=True) if axis != "T"), clip_id)
    if len(rows) > 1:
        (one, first), (other, second), *_ = rows.items()
        raise FeatureFileError(
            f"{first} has rows of shape {one}, and {second} of {other}: all must be equal."
        )
    dtype = "float16" if dtypes == {np.dtype(np.float16)} else "float32"
    if others := sorted({str(each) for each in dtypes} - {"float16", "float32"}):
        log.warning("Values of %s are rounded to float32.", few(others))
    return axes, dtype


def infer_axes(shapes: Mapping[str, tuple[int, ...]], lengths: Mapping[str, int]) -> str:
    """The axes of arrays, given as {clip id: shape}: the one that differs between clips is time.

    `lengths` has the number of frames of some clips. Raises FeatureFileError where it stays open.
    """
    ndims = {len(shape) for shape in shapes.values()}
    if ndims == {4}:
        return "TCHW"
    if ndims != {2}:
        clip_id = next(name for name, shape in shapes.items() if len(shape) not in (2, 4) or len(ndims) > 1)
        raise FeatureFileError(
            f"{clip_id} has the shape {shapes[clip_id]}, and features are (T, D), (D, T) or (T, C, H, W), all"
            " alike."
        )
    known = {name: length for name, length in lengths.items() if name in shapes}
    fits = {
        axes: len({shape[axes.index("D")] for shape in shapes.values()}) == 1
        and all(shapes[name][axes.index("T")] == length for name, length in known.items())
        for axes in ("TD", "DT")
    }
    if sum(fits.values()) == 1:
        return next(axes for axes, fit in fits.items() if fit)
    name, shape = next(iter(shapes.items()))
    raise FeatureFileError(
        f"{name} has the shape {shape}, and the clips do not tell which axis is time. Give the axes: TD or"
        " DT."
        if all(fits.values())
        else f"{name} has the shape {shape}: no axis has the same size in all clips, or clips do not have the"
        " frames that their labels have."
    )


def _listing(clips: Sequence[ForeignClip], digests: Mapping[Path, str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("clip_id", "file", "sha256"))
    writer.writerows((clip.clip_id, clip.file.name, digests[clip.file]) for clip in clips)
    return text.getvalue().encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
