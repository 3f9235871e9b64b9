"""Writes clips to files that other programs read without framecache, and that `import` reads back."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import StoreError
from pipeline.store.reader import FeatureView
from pipeline.store.upkeep.foreign import SECONDS_SUFFIX
from pipeline.system.files import atomic_path, naming_full_disk, partial_path

Write = Callable[[FeatureView, str, Path], None]  # a clip's files, into a folder


def _write_npy(view: FeatureView, clip_id: str, folder: Path) -> None:
    """<clip>.npy (T, C, H, W) and <clip>.seconds.npy (T,) float64."""
    np.save(folder / f"{file_stem(clip_id)}.npy", view.read(clip_id))
    np.save(folder / f"{file_stem(clip_id)}.seconds.npy", view.frame_seconds(clip_id))


def _write_npz(view: FeatureView, clip_id: str, folder: Path) -> None:
    """<clip>.npz, with `features` (T, C, H, W) and `frame_seconds` (T,) float64."""
    maps, seconds = view.read(clip_id), view.frame_seconds(clip_id)
    np.savez(folder / f"{file_stem(clip_id)}.npz", features=maps, frame_seconds=seconds)


def _write_pt(view: FeatureView, clip_id: str, folder: Path) -> None:
    """<clip>.pt, with the tensors `features` (T, C, H, W) and `frame_seconds` (T,) float64."""
    import torch

    arrays = {"features": view.read(clip_id), "frame_seconds": view.frame_seconds(clip_id).copy()}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(tensors, folder / f"{file_stem(clip_id)}.pt")


def _write_mstcn(view: FeatureView, clip_id: str, folder: Path) -> None:
    """features/<clip>.npy (D, T), and its times as `_write_npy` does."""
    _write_vectors(view, clip_id, folder, view.read(clip_id)[:, :, 0, 0].T)


def _write_actionformer(view: FeatureView, clip_id: str, folder: Path) -> None:
    """features/<clip>.npy (T, D), and its times as `_write_npy` does."""
    _write_vectors(view, clip_id, folder, view.read(clip_id)[:, :, 0, 0])


def _write_vectors(view: FeatureView, clip_id: str, folder: Path, vectors: np.ndarray) -> None:
    (folder / "features").mkdir(exist_ok=True)
    np.save(folder / f"features/{file_stem(clip_id)}.npy", np.ascontiguousarray(vectors))
    np.save(folder / f"features/{file_stem(clip_id)}.seconds.npy", view.frame_seconds(clip_id))


_WRITES: dict[str, Write] = {
    "npy": _write_npy,
    "npz": _write_npz,
    "pt": _write_pt,
    "mstcn": _write_mstcn,
    "actionformer": _write_actionformer,
}
_OF_VECTORS = ("mstcn", "actionformer")
FORMATS = (*_WRITES, "hdf5")


def dump(
    view: FeatureView,
    clip_ids: Sequence[str],
    out: Path,
    *,
    form: str,
    add_files: Callable[[Path], object] = lambda _: None,
    on_clip: Callable[[], object] = lambda: None,
) -> None:
    """Write clips to the new folder `out`, or to a new file of HDF5, as `form`, one of FORMATS, has them.

    `add_files` gets the folder before it has its name; a file of HDF5 has none.

    Raises StoreError when `out` exists, and for maps where the form has one vector a frame; MissingClipError
    for an unknown clip.
    """
    if out.exists():
        raise StoreError(f"{out} exists. Give another name, or remove it.")
    for clip_id in clip_ids:
        view.num_frames(clip_id)  # raises MissingClipError for one that is unknown
    if form in _OF_VECTORS and view.map_shape[1:] != (1, 1):
        raise StoreError(
            f"{view.path} has maps of shape {view.map_shape}, and {form} holds one vector a frame. Choose"
            " another format, or pool the maps."
        )
    if form == "hdf5":
        _dump_hdf5(view, clip_ids, out, on_clip=on_clip)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(out)
    partial.mkdir()
    try:
        with naming_full_disk(out):
            (partial / "contract.json").write_bytes(view.contract.model_dump_json(indent=1).encode())
            for clip_id in clip_ids:
                _WRITES[form](view, clip_id, partial)
                on_clip()
            add_files(partial)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dump_hdf5(
    view: FeatureView, clip_ids: Sequence[str], out: Path, *, on_clip: Callable[[], object]
) -> None:
    """The datasets features/<clip> (T, C, H, W) and frame_seconds/<clip> (T,) float64."""
    import h5py

    with atomic_path(out) as partial, h5py.File(partial, "w") as file:
        file.attrs["contract"] = view.contract.model_dump_json()
        for clip_id in clip_ids:
            file[f"features/{file_stem(clip_id)}"] = view.read(clip_id)
            file[f"frame_seconds/{file_stem(clip_id)}"] = view.frame_seconds(clip_id)
            on_clip()


def file_stem(clip_id: str) -> str:
    """A clip's id as the name of a file: without folders, not hidden, and no name of a file of times."""
    stem = clip_id.replace("%", "%25").replace("/", "%2F")
    if stem.startswith("."):
        stem = f"%2E{stem[1:]}"
    if stem.endswith(SECONDS_SUFFIX):
        stem = f"{stem.removesuffix(SECONDS_SUFFIX)}%2E{SECONDS_SUFFIX[1:]}"
    return stem
