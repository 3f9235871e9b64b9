"""Summaries of a journal or a view: one FeatureSet for each contract in each layout."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pipeline.contract import FeatureContract
from pipeline.store.clips import stored_clips
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import RECORD_SUFFIX, read_record
from pipeline.store.format.tables import unseal
from pipeline.store.reader import open_view
from pipeline.store.view import INDEX_NAME, index_shards


@dataclass(frozen=True)
class FeatureSet:
    """Features of one contract in one layout."""

    path: Path
    contract: FeatureContract
    layout: Layout
    num_clips: int  # complete ones
    num_rows: int  # of complete clips
    num_shards: int
    size_bytes: int
    changed_seconds: float  # Unix time of the newest shard


def journal_sets(path: Path) -> list[FeatureSet]:
    """The features in the journal at `path`, the newest first. Raises DamagedError for a damaged record."""
    sets = []
    for directory in path.glob("contracts/*/*/"):
        paths = sorted(directory.glob(f"*{RECORD_SUFFIX}"))
        if not paths:
            continue
        records = [read_record(path) for path in paths]
        clips = stored_clips(records).values()
        sets.append(
            FeatureSet(
                path=directory,
                contract=records[0].contract,
                layout=records[0].layout,
                num_clips=len(clips),
                num_rows=sum(clip.num_frames for clip in clips),
                num_shards=len(records),
                size_bytes=_size_bytes(directory / record.shard_name for record in records),
                changed_seconds=max(path.stat().st_mtime for path in paths),
            )
        )
    return sorted(sets, key=lambda each: each.changed_seconds, reverse=True)


def view_sets(path: Path) -> list[FeatureSet]:
    """The features in the view at `path`, sorted by tap. Raises as `open_view` does."""
    sets = []
    for folder in sorted(index.parent for index in path.glob(f"*/{INDEX_NAME}")):
        with open_view(folder) as view:
            contract, layout = view.contract, view.layout
        index, _ = unseal((folder / INDEX_NAME).read_bytes(), path=folder / INDEX_NAME)
        shards = [folder / name for name in index_shards(folder / INDEX_NAME).values()]
        sets.append(
            FeatureSet(
                path=folder,
                contract=contract,
                layout=layout,
                num_clips=len(index),
                num_rows=sum(index["num_frames"].to_pylist()),
                num_shards=len(shards),
                size_bytes=_size_bytes(shards),
                changed_seconds=max((shard.stat().st_mtime for shard in shards), default=0),
            )
        )
    return sets


def _size_bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
