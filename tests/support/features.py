"""Stand-ins for the network: stores are filled with maps that tell which clip and frame they are."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import hdf5plugin  # noqa: F401 - registers the codecs of HDF5
import numpy as np
import xxhash
import zarr

from pipeline.contract import FeatureContract, Preprocessing, Sampling
from pipeline.store import (
    ClipSource,
    Journal,
    Layout,
    ShardWriter,
    TapView,
    committing,
    open_view,
    publish,
    stored_clips,
)

MAP_SHAPE = (4, 3, 2)
FORMATS = ("zarr", "hdf5")
CODECS = ("none", "lz4", "zstd")


def make_contract(**changes: object) -> FeatureContract:
    fields = {
        "sampling": Sampling(),
        "preprocessing": Preprocessing(resize=32, crop=32),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "arch": "resnet18",
        "weights_sha256": "0" * 64,
        "tap": "layer4",
    }
    return FeatureContract.model_validate({**fields, **changes})


def make_layout(contract: FeatureContract, **changes: object) -> Layout:
    """Small shards, so that clips straddle chunks and shards."""
    fields = {"rows_per_chunk": 4, "rows_per_shard": 32, "format": "zarr", "codec": "none"}
    return Layout(**{"dtype": contract.dtype, "row_shape": MAP_SHAPE, **fields, **changes})  # type: ignore[arg-type]


def clip_maps(clip_id: str, num_frames: int, *, dtype: str = "float16") -> np.ndarray:
    """Maps (T, C, H, W) that are a function of the clip's id and the frame."""
    seed = xxhash.xxh3_64_intdigest(clip_id.encode())
    return np.random.default_rng(seed).standard_normal((num_frames, *MAP_SHAPE)).astype(dtype)


def clip_source(clip_id: str) -> ClipSource:
    return ClipSource(xxhash.xxh3_128_digest(clip_id.encode()), clip_id, f"{clip_id}.mp4")


def frame_times(num_frames: int) -> np.ndarray:
    return np.arange(num_frames) / 25


def make_writer(journal: Journal, contract: FeatureContract, layout: Layout) -> ShardWriter:
    """A writer that commits full shards, and nothing for being old."""
    directory = journal.directory(contract, layout)
    return ShardWriter(directory, contract=contract, layout=layout, commit_seconds=1e9)


def fill(journal: Journal, contract: FeatureContract, layout: Layout, clips: Mapping[str, int]) -> None:
    """Commit clips, given as {id: number of frames}."""
    maps = {name: clip_maps(name, count, dtype=contract.dtype) for name, count in clips.items()}
    fill_maps(journal, contract, layout, maps)


def fill_maps(
    journal: Journal, contract: FeatureContract, layout: Layout, clips: Mapping[str, np.ndarray]
) -> None:
    """Commit clips, given as {id: maps (T, C, H, W)}."""
    writer = make_writer(journal, contract, layout)
    with committing(writer):
        for clip_id, maps in clips.items():
            writer.append(clip_source(clip_id), maps, frame_times(len(maps)), final=True)


def make_journal(
    path: Path, clips: Mapping[str, int] = {}, *, contract: FeatureContract | None = None, **changes: object
) -> tuple[Journal, FeatureContract, Layout]:
    """A journal with clips, given as {id: number of frames}; their contract and their layout."""
    contract = contract or make_contract()
    layout = make_layout(contract, **changes)
    journal = Journal(path)
    fill(journal, contract, layout, clips)
    return journal, contract, layout


def publish_clips(
    journal: Journal, contract: FeatureContract, layout: Layout, clip_ids: Sequence[str], path: Path
) -> Path:
    """Publish a view of the given clips; the folder of its tap."""
    publish(journal, [tap_view(journal, contract, layout, clip_ids)], path, files={})
    return path / contract.tap


def tap_view(journal: Journal, contract: FeatureContract, layout: Layout, clip_ids: Sequence[str]) -> TapView:
    """A view of the given clips, to be published."""
    records = journal.records(contract, layout)
    stored = stored_clips(records.values())
    clips = {clip_id: stored[clip_source(clip_id).key] for clip_id in clip_ids}
    return TapView(contract, layout, clips, records)


def make_view(path: Path, clips: Mapping[str, int], **layout_changes: object) -> Path:
    """A journal and a view of clips, given as {id: number of frames}; the folder of the tap."""
    journal, contract, layout = make_journal(path / "journal", clips, **layout_changes)
    return publish_clips(journal, contract, layout, list(clips), path / "features")


def assert_holds(path: Path, clips: Mapping[str, int]) -> None:
    """The tap's view has exactly these clips, {id: number of frames}, bit for bit."""
    with open_view(path) as view:
        assert view.clip_ids() == sorted(clips)
        for clip_id, num_frames in clips.items():
            maps = clip_maps(clip_id, num_frames, dtype=str(view.dtype))
            np.testing.assert_array_equal(view.read(clip_id), maps)
            np.testing.assert_array_equal(view.frame_seconds(clip_id), frame_times(num_frames))


def read_plainly(path: Path) -> tuple[np.ndarray, object]:
    """A tap's rows (N, C, H, W) and its contract, as people without framecache read them."""
    if (path / "zarr.json").exists():
        array = zarr.open_array(path, mode="r")
        return array[:], array.attrs["contract"]
    with h5py.File(path / "features.h5") as file:
        return file["features"][:], json.loads(file["features"].attrs["contract"])


def read_with_dask(path: Path) -> np.ndarray:
    """A tap's rows (N, C, H, W) through dask.array."""
    import dask.array  # imported here: it takes half a second

    if (path / "zarr.json").exists():
        return dask.array.from_zarr(str(path)).compute()
    with h5py.File(path / "features.h5") as file:
        return dask.array.from_array(file["features"]).compute()


def shard_files(path: Path) -> list[Path]:
    """The shard files of a tap's view, in order."""
    pattern = "c/*/0/0/0" if (path / "zarr.json").exists() else "shards/*.h5"
    return sorted(
        path.glob(pattern), key=lambda file: [int(p) for p in re.findall(r"\d+", str(file.relative_to(path)))]
    )
