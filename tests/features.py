"""Stand-ins for the network: stores are filled with maps that tell which clip and frame they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xxhash

from pipeline.contract import FeatureContract, Preprocessing, Sampling
from pipeline.store import (
    ClipSource,
    Journal,
    Layout,
    ShardWriter,
    TapView,
    committing,
    publish,
    stored_clips,
)

MAP_SHAPE = (4, 3, 2)


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


def fill(journal: Journal, contract: FeatureContract, layout: Layout, clips: Mapping[str, int]) -> None:
    """Commit clips, given as {id: number of frames}."""
    writer = ShardWriter(
        journal.directory(contract, layout), contract=contract, layout=layout, commit_seconds=1e9
    )
    with committing(writer):
        for clip_id, num_frames in clips.items():
            maps = clip_maps(clip_id, num_frames, dtype=contract.dtype)
            writer.append(clip_source(clip_id), maps, frame_times(num_frames), final=True)


def publish_clips(
    journal: Journal, contract: FeatureContract, layout: Layout, clip_ids: Sequence[str], path: Path
) -> Path:
    """Publish a view of the given clips; the folder of its tap."""
    records = journal.records(contract, layout)
    stored = stored_clips(records.values())
    clips = {clip_id: stored[clip_source(clip_id).key] for clip_id in clip_ids}
    publish(journal, [TapView(contract, layout, clips, records)], path, files={})
    return path / contract.tap


def make_view(path: Path, clips: Mapping[str, int], **layout_changes: object) -> Path:
    """A journal and a view of clips, given as {id: number of frames}; the folder of the tap."""
    contract = make_contract()
    layout = make_layout(contract, **layout_changes)
    journal = Journal(path / "journal")
    fill(journal, contract, layout, clips)
    return publish_clips(journal, contract, layout, list(clips), path / "features")
