"""Writes clips to files that other programs read without framecache: .npy, .npz or one HDF5 file."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import StoreError
from pipeline.store.reader import FeatureView
from pipeline.system.files import atomic_path, naming_full_disk, partial_path


def dump_npy(view: FeatureView, clip_ids: Sequence[str], out: Path, *, on_clip: Callable[[], object]) -> None:
    """Write <clip>.npy (T, C, H, W) and <clip>.seconds.npy (T,) float64 to the new folder `out`.

    Raises StoreError when `out` exists, MissingClipError for an unknown clip.
    """

    def write(path: Path, clip_id: str) -> None:
        np.save(path / f"{file_stem(clip_id)}.npy", view.read(clip_id))
        np.save(path / f"{file_stem(clip_id)}.seconds.npy", view.frame_seconds(clip_id))

    _dump_folder(view, clip_ids, out, write=write, on_clip=on_clip)


def dump_npz(view: FeatureView, clip_ids: Sequence[str], out: Path, *, on_clip: Callable[[], object]) -> None:
    """Write <clip>.npz, with `features` (T, C, H, W) and `frame_seconds` (T,) float64, to a new folder.

    Raises as `dump_npy`.
    """

    def write(path: Path, clip_id: str) -> None:
        np.savez(
            path / f"{file_stem(clip_id)}.npz",
            features=view.read(clip_id),
            frame_seconds=view.frame_seconds(clip_id),
        )

    _dump_folder(view, clip_ids, out, write=write, on_clip=on_clip)


def dump_hdf5(
    view: FeatureView, clip_ids: Sequence[str], out: Path, *, on_clip: Callable[[], object]
) -> None:
    """Write the datasets features/<clip> (T, C, H, W) and frame_seconds/<clip> (T,) float64 to a new file.

    Raises as `dump_npy`.
    """
    import h5py

    _check(view, clip_ids, out)
    with atomic_path(out) as partial, h5py.File(partial, "w") as file:
        file.attrs["contract"] = view.contract.model_dump_json()
        for clip_id in clip_ids:
            file[f"features/{file_stem(clip_id)}"] = view.read(clip_id)
            file[f"frame_seconds/{file_stem(clip_id)}"] = view.frame_seconds(clip_id)
            on_clip()


DUMPS = {"npy": dump_npy, "npz": dump_npz, "hdf5": dump_hdf5}


def file_stem(clip_id: str) -> str:
    """A clip's id as the name of a file, without folders."""
    return clip_id.replace("%", "%25").replace("/", "%2F")


def _dump_folder(
    view: FeatureView,
    clip_ids: Sequence[str],
    out: Path,
    *,
    write: Callable[[Path, str], None],
    on_clip: Callable[[], object],
) -> None:
    _check(view, clip_ids, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(out)
    partial.mkdir()
    try:
        with naming_full_disk(out):
            (partial / "contract.json").write_bytes(view.contract.model_dump_json(indent=1).encode())
            for clip_id in clip_ids:
                write(partial, clip_id)
                on_clip()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(view: FeatureView, clip_ids: Sequence[str], out: Path) -> None:
    if out.exists():
        raise StoreError(f"{out} exists. Give another name, or remove it.")
    for clip_id in clip_ids:
        view.num_frames(clip_id)  # raises MissingClipError for one that is unknown
