"""Clips in shards: which are complete, where their rows are, and which of several copies a view takes."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.store.format.records import Record


@dataclass(frozen=True, slots=True)
class Span:
    """Consecutive rows of one shard that belong to one clip."""

    shard_id: str
    row: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class StoredClip:
    """A complete clip: where its rows are, in frame order. A shard's record has the times of its rows."""

    key: bytes
    spans: tuple[Span, ...]

    @property
    def num_frames(self) -> int:
        """How many frames, one a row."""
        return sum(span.num_rows for span in self.spans)

    def is_in(self, shard_ids: Iterable[str]) -> bool:
        """Whether any of its rows are in one of these shards."""
        return any(span.shard_id in shard_ids for span in self.spans)


def stored_clips(records: Iterable[Record]) -> dict[bytes, StoredClip]:
    """The complete clips of some shards, by key. For a clip that is there twice, the latest copy.

    A clip that has lost a shard, to repair or gc, is as incomplete as one whose extraction was cut off.
    """
    return {key: copies[-1] for key, copies in clip_copies(records).items()}


def clip_copies(records: Iterable[Record]) -> dict[bytes, list[StoredClip]]:
    """Every complete copy of each clip of some shards, by key; that of the latest generation is the last."""
    found: dict[bytes, list[StoredClip]] = {}
    partial: list[tuple[str, pa.Table]] = []
    generations: dict[str, int] = {}
    for record in records:
        generations[record.shard_id] = record.generation
        whole, parts = _split_spans(record)
        columns = (whole[name].to_pylist() for name in ("clip_key", "row", "num_rows"))
        for key, row, num_rows in zip(*columns, strict=True):
            clip = StoredClip(key, (Span(record.shard_id, row, num_rows),))
            found.setdefault(key, []).append(clip)
        partial.append((record.shard_id, parts))
    for clip in _chained_clips(partial):
        found.setdefault(clip.key, []).append(clip)
    for copies in found.values():
        copies.sort(key=lambda clip: generations[clip.spans[-1].shard_id])
    return found


def stored_keys(records: Iterable[Record]) -> set[bytes]:
    """The keys of `stored_clips`, found several times as fast."""
    found: set[bytes] = set()
    partial: list[tuple[str, pa.Table]] = []
    for record in records:
        whole, parts = _split_spans(record)
        found.update(whole["clip_key"].to_pylist())
        partial.append((record.shard_id, parts))
    return found.union(clip.key for clip in _chained_clips(partial))


def choose_copies(
    copies: Mapping[str, Sequence[StoredClip]], records: Mapping[str, Record]
) -> dict[str, StoredClip]:
    """One copy of each clip, given as {clip id: copies}, so that few rows in their shards are of no clip.

    The latest copy of each, or the copies in the shards that are needed, whichever have fewer rows in their
    shards. With only the latest, a manifest that comes back would not find the shards that it had before;
    with only the needed shards, a clip's new copy might stay unused.
    """
    latest = {clip_id: found[-1] for clip_id, found in copies.items()}
    if all(len(found) == 1 for found in copies.values()):
        return latest

    def num_rows(clips: Mapping[str, StoredClip]) -> int:
        shard_ids = {span.shard_id for clip in clips.values() for span in clip.spans}
        return sum(records[shard_id].num_rows for shard_id in shard_ids)

    return min(_in_needed_shards(copies, records), latest, key=num_rows)


def _in_needed_shards(
    copies: Mapping[str, Sequence[StoredClip]], records: Mapping[str, Record]
) -> dict[str, StoredClip]:
    """One copy of each clip. A shard is left out when the others have all its clips.

    The shard with the largest share of rows of no clip goes first, of equal ones the largest.
    """
    left = dict(copies)
    clips_in: dict[str, set[str]] = defaultdict(set)
    spans: set[Span] = set()
    for clip_id, found in copies.items():
        for span in (span for clip in found for span in clip.spans):
            clips_in[span.shard_id].add(clip_id)
            spans.add(span)
    used = used_rows(spans)

    def rank(shard_id: str) -> tuple[float, int, str]:
        num_rows = records[shard_id].num_rows
        return used[shard_id] / num_rows, -num_rows, shard_id

    for shard_id in sorted(used, key=rank):
        others = {
            clip_id: [clip for clip in left[clip_id] if not clip.is_in({shard_id})]
            for clip_id in clips_in[shard_id]
        }
        if all(others.values()):
            left.update(others)
    return {clip_id: found[-1] for clip_id, found in left.items()}


def used_rows(spans: Iterable[Span]) -> dict[str, int]:
    """How many rows of each shard these spans have, by shard id."""
    counts: Counter[str] = Counter()
    for span in spans:
        counts[span.shard_id] += span.num_rows
    return counts


def _split_spans(record: Record) -> tuple[pa.Table, pa.Table]:
    """The spans that hold a whole clip, and the others."""
    spans = record.spans.drop_columns(["clip_id", "source", "frame_seconds"])
    whole = spans["final"].to_numpy() & (spans["first_frame"].to_numpy() == 0)
    return spans.filter(pa.array(whole)), spans.filter(pa.array(~whole))


def _chained_clips(partial: Iterable[tuple[str, pa.Table]]) -> list[StoredClip]:
    """The complete clips among those of several spans, given as (shard id, spans in that shard)."""
    pieces: dict[tuple[bytes, str], list[tuple[int, Span, str | None]]] = {}
    ends: list[tuple[bytes, str]] = []
    for shard_id, spans in partial:
        for row in spans.to_pylist():
            span = Span(shard_id, row["row"], row["num_rows"])
            piece = (row["first_frame"], span, row["previous_shard"])
            pieces.setdefault((row["clip_key"], shard_id), []).append(piece)
            if row["final"]:
                ends.append((row["clip_key"], shard_id))
    found = []
    for key, shard_id in ends:
        chain: list[tuple[int, Span, str | None]] = []
        link_id: str | None = shard_id
        while link_id is not None and (here := pieces.get((key, link_id))):
            chain += here
            link_id = here[0][2]
        chain.sort(key=lambda piece: piece[0])
        if link_id is None and chain[0][0] == 0:
            found.append(StoredClip(key, tuple(span for _, span, _ in chain)))
    return found
