"""Repacking: features are copied and not computed.

They come from another layout, from a dtype with more bits, or out of shards with many rows of no clip.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Self

import numpy as np

from pipeline.contract import FeatureContract
from pipeline.errors import DamagedError
from pipeline.store.clips import (
    Span,
    StoredClip,
    choose_copies,
    clip_copies,
    stored_clips,
    stored_keys,
    used_rows,
)
from pipeline.store.format.finite import row_peaks, why_unfit
from pipeline.store.format.layout import Layout
from pipeline.store.format.records import ClipSource, Record
from pipeline.store.format.rows import ShardRows
from pipeline.store.journal import Journal, Quarantined
from pipeline.store.shards import ShardWriter, committing
from pipeline.store.view import TapView

log = logging.getLogger(__name__)

_PIECE_BYTES = 32 << 20

_MOST_UNUSED = 0.1  # the share of the rows in a view's shards that may be of no clip


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
        found = [clip for key, clip in stored_clips(records.values()).items() if key in missing]
        if found:
            writer = ShardWriter(
                journal.directory(contract, layout),
                contract=contract,
                layout=layout,
                commit_seconds=commit_seconds,
            )
            copied = _copy_all(journal, found, records, writer, on_clip=on_clip)
            missing -= copied | journal.quarantined(contract.digest()).keys()
            num_clips += len(copied)
    return num_clips


def compact(
    journal: Journal,
    copies: Mapping[str, Sequence[StoredClip]],
    records: Mapping[str, Record],
    *,
    contract: FeatureContract,
    layout: Layout,
) -> TapView:
    """The view of clips, given as {clip id: copies}; at most a tenth of its shards' rows are of no clip.

    Where more would be, clips are first copied to new shards, which depend on the old ones alone and not on
    time. A read-only journal stays as it is. A clip whose rows are damaged stays where it is, with a warning.
    `records` are all of this contract and layout. The caller holds the lock.
    """
    clips = choose_copies(copies, records)
    if not journal.is_read_only and _clips_to_move(clips.values(), records):
        # From the latest copies: then the latest copies afterwards are these and the new ones.
        moving = _clips_to_move((found[-1] for found in copies.values()), records)
        log.info(
            "More than a tenth of the rows of %s are of no clip: %d clips are copied to new shards.",
            contract.name,
            len(moving),
        )
        writer = ShardWriter(
            journal.directory(contract, layout),
            contract=contract,
            layout=layout,
            commit_seconds=float("inf"),
            generation=1 + max(record.generation for record in records.values()),
        )
        _copy_all(journal, moving, records, writer)
        records = journal.records(contract, layout)
        stored = clip_copies(records.values())
        clips = choose_copies({clip_id: stored[clip.key] for clip_id, clip in clips.items()}, records)
    return TapView(contract, layout, clips, records)


def _clips_to_move(clips: Iterable[StoredClip], records: Mapping[str, Record]) -> list[StoredClip]:
    """The clips to copy to new shards, so that at most a tenth of the rows are of no clip.

    They are all clips of a shard in which more are. A clip in several shards leaves unused rows in each, so
    that more than a tenth may then be in another.
    """
    staying = {clip.key: clip for clip in clips}
    moving: list[StoredClip] = []
    while True:
        used = used_rows(span for clip in staying.values() for span in clip.spans)
        num_rows = {shard_id: records[shard_id].num_rows for shard_id in used}
        num_moving = sum(clip.num_frames for clip in moving)
        unused = sum(num_rows.values()) - sum(used.values())
        if unused <= _MOST_UNUSED * (sum(num_rows.values()) + num_moving):
            return moving
        sparse = {each for each in used if num_rows[each] - used[each] > _MOST_UNUSED * num_rows[each]}
        leaving = [clip for clip in staying.values() if clip.is_in(sparse)]
        for clip in leaving:
            del staying[clip.key]
        moving += leaving


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


def _copy_all(
    journal: Journal,
    clips: Iterable[StoredClip],
    records: Mapping[str, Record],
    writer: ShardWriter,
    *,
    on_clip: Callable[[], object] = lambda: None,
) -> set[bytes]:
    """Copy clips from the shards with these records, in the order of their rows; the keys of those copied.

    A clip that does not fit the contract's dtype is quarantined for it. A damaged clip is left out.
    """
    copied = set()
    with _Shards(journal, records) as shards, committing(writer):
        for clip in sorted(clips, key=lambda clip: (clip.spans[0].shard_id, clip.spans[0].row)):
            source = shards.source(clip)
            try:
                _copy(source, clip, shards, writer)
            except DamagedError as error:
                writer.drop(source)
                log.warning("%s", error)
            except _UnfitError as error:
                writer.drop(source)
                reason = str(error)
                quarantined = Quarantined(source.clip_id, source.source, reason, num_recovered=0)
                journal.quarantine(writer.contract.digest(), clip.key, quarantined)
                log.warning("Clip %s is quarantined: %s", source.clip_id, reason)
            else:
                copied.add(clip.key)
            on_clip()
    return copied


class _Shards:
    """The shards of one contract and layout, each opened once."""

    def __init__(self, journal: Journal, records: Mapping[str, Record]) -> None:
        one = next(iter(records.values()))
        self.layout = one.layout
        self._directory = journal.directory(one.contract, one.layout)
        self._records = records
        self._closer = contextlib.ExitStack()
        self._open: dict[str, ShardRows] = {}
        self._sources: dict[str, dict[bytes, ClipSource]] = {}
        self._seconds: dict[str, np.ndarray] = {}

    def source(self, clip: StoredClip) -> ClipSource:
        shard_id = clip.spans[-1].shard_id
        if shard_id not in self._sources:
            self._sources[shard_id] = self._records[shard_id].clip_sources()
        return self._sources[shard_id][clip.key]

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
    writer: ShardWriter,
) -> None:
    """Read a clip's rows piece by piece, and append them in the contract's dtype."""
    layout = shards.layout
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
            if maps.dtype != writer.dtype and (reason := why_unfit(row_peaks(maps), times, writer.contract)):
                raise _UnfitError(reason)
            writer.append(source, maps.astype(writer.dtype, copy=False), times, final=left == 0)
