"""Repacking: features that exist in another layout, or with more bits, are copied and not computed."""

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.contract import FeatureContract
from pipeline.errors import DamagedError
from pipeline.store.format.finite import row_peaks, why_unfit
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import ClipSource, Record
from pipeline.store.format.rows import ShardRows
from pipeline.store.journal import Journal, Quarantined, Span, StoredClip, stored_clips, stored_keys
from pipeline.store.shards import ShardWriter, committing

log = logging.getLogger(__name__)

_PIECE_BYTES = 32 << 20


def repack(
    journal: Journal,
    keys: Collection[bytes],
    *,
    contract: FeatureContract,
    layout: Layout,
    commit_seconds: float,
    on_clip: Callable[[], object] = lambda: None,
) -> int:
    """Copy the features of the clips `keys` to `contract` and `layout` from other layouts and dtypes.

    Returns how many clips were copied; `on_clip` is called after each clip that was tried. float16 is made
    from float32, never the other way round. A clip with values that float16 can't hold is quarantined for
    `contract`. A clip whose copy is damaged is left out, with a warning. The caller holds the lock.
    """
    missing = set(keys)
    num_clips = 0
    for source_contract, source_layout in _sources(journal, contract, layout):
        records = journal.records(source_contract, source_layout)
        found = {key: clip for key, clip in stored_clips(records.values()).items() if key in missing}
        if not found:
            continue
        writer = ShardWriter(
            journal.directory(contract, layout),
            contract=contract,
            layout=layout,
            commit_seconds=commit_seconds,
        )
        directory = journal.directory(source_contract, source_layout)
        with _Shards(directory, records) as shards, committing(writer):
            for key, clip in sorted(found.items(), key=lambda item: _place(item[1])):
                source = shards.source(clip, key)
                try:
                    _copy(source, clip, shards, source_layout, writer, contract)
                except DamagedError as error:
                    writer.drop(source)
                    log.warning("%s", error)
                except _UnfitError as error:
                    writer.drop(source)
                    reason = str(error)
                    quarantined = Quarantined(source.clip_id, source.source, reason, num_recovered=0)
                    journal.quarantine(contract.digest(), key, quarantined)
                    missing.discard(key)
                    log.warning("Clip %s is quarantined: %s", source.clip_id, reason)
                else:
                    missing.discard(key)
                    num_clips += 1
                on_clip()
    return num_clips


def repackable_keys(journal: Journal, contract: FeatureContract, layout: Layout) -> set[bytes]:
    """The keys of the clips that `repack` can copy to this contract and layout."""
    found: set[bytes] = set()
    for source_contract, source_layout in _sources(journal, contract, layout):
        found |= stored_keys(journal.records(source_contract, source_layout).values())
    return found


def repackable_contracts(contract: FeatureContract) -> list[FeatureContract]:
    """The contracts whose features `repack` copies to `contract`: itself, and those with more bits."""
    if contract.dtype == "float16":
        return [contract, contract.model_copy(update={"dtype": "float32"})]
    return [contract]


def _sources(
    journal: Journal, contract: FeatureContract, layout: Layout
) -> list[tuple[FeatureContract, Layout]]:
    """Where copies may come from, those of the same dtype first."""
    return [
        (source, other)
        for source in repackable_contracts(contract)
        for other in journal.layouts(source)
        if (source, other) != (contract, layout)
    ]


def _place(clip: StoredClip) -> tuple[str, int]:
    return clip.spans[0].shard_id, clip.spans[0].row


class _Shards:
    """The shards of one contract and layout, each opened once."""

    def __init__(self, directory: Path, records: Mapping[str, Record]) -> None:
        self._directory = directory
        self._records = records
        self._closer = contextlib.ExitStack()
        self._open: dict[str, ShardRows] = {}
        self._sources: dict[str, dict[bytes, ClipSource]] = {}
        self._seconds: dict[str, np.ndarray] = {}

    def source(self, clip: StoredClip, key: bytes) -> ClipSource:
        shard_id = clip.spans[-1].shard_id
        if shard_id not in self._sources:
            self._sources[shard_id] = self._records[shard_id].clip_sources()
        return self._sources[shard_id][key]

    def seconds(self, span: Span) -> np.ndarray:
        if span.shard_id not in self._seconds:
            self._seconds[span.shard_id] = self._records[span.shard_id].frame_seconds()
        return self._seconds[span.shard_id][span.row : span.row + span.num_rows]

    def rows(self, shard_id: str) -> ShardRows:
        if shard_id not in self._open:
            record = self._records[shard_id]
            path = self._directory / record.shard_name
            try:
                file = self._closer.enter_context(path.open("rb", buffering=0))
            except FileNotFoundError:
                raise DamagedError(f"Shard {shard_id} ({path}) is missing.") from None
            columns = {name: record.chunks[name] for name in record.chunks.dtype.names or ()}
            self._open[shard_id] = ShardRows(
                file.fileno(), layout=record.layout, chunks=columns, name=f"Shard {shard_id} ({path})"
            )
        return self._open[shard_id]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closer.close()


class _UnfitError(Exception):
    """A clip's values can't be stored in the contract's dtype."""


def _copy(
    source: ClipSource,
    clip: StoredClip,
    shards: _Shards,
    layout: Layout,
    writer: ShardWriter,
    contract: FeatureContract,
) -> None:
    """Read a clip's rows, which lie in `layout`, piece by piece, and append them in the contract's dtype."""
    left = clip.num_frames
    size = max(1, _PIECE_BYTES // layout.row_bytes)
    for span in clip.spans:
        seconds = shards.seconds(span)
        for first in range(0, span.num_rows, size):
            maps = np.empty((min(size, span.num_rows - first), *layout.row_shape), layout.dtype)
            buffer = maps.reshape(-1).view(np.uint8).data
            shards.rows(span.shard_id).read_into(buffer, row=span.row + first, clip_id=source.clip_id)
            left -= len(maps)
            times = seconds[first : first + len(maps)]
            if maps.dtype != writer.dtype and (reason := why_unfit(row_peaks(maps), times, contract)):
                raise _UnfitError(reason)
            writer.append(source, maps.astype(writer.dtype, copy=False), times, final=left == 0)
