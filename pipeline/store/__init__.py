"""The feature store: a journal of immutable shards, and views that are ordinary arrays. See FORMAT.md."""

from pipeline.store.clips import Span, StoredClip, clip_copies, stored_clips, stored_keys
from pipeline.store.digests import DigestCache
from pipeline.store.format.finite import why_unfit
from pipeline.store.format.layout import Layout, layout_for
from pipeline.store.format.records import ClipSource, Record, read_record
from pipeline.store.journal import Journal, Quarantined
from pipeline.store.reader import FeatureView, open_view
from pipeline.store.shards import ShardWriter, committing
from pipeline.store.upkeep.repack import compact, repack, repackable_contracts, repackable_keys
from pipeline.store.view import TapView, publish, stream_folder, view_folder

__all__ = [
    "ClipSource",
    "DigestCache",
    "FeatureView",
    "Journal",
    "Layout",
    "Quarantined",
    "Record",
    "ShardWriter",
    "Span",
    "StoredClip",
    "TapView",
    "clip_copies",
    "committing",
    "compact",
    "layout_for",
    "open_view",
    "publish",
    "read_record",
    "repack",
    "repackable_contracts",
    "repackable_keys",
    "stored_clips",
    "stored_keys",
    "stream_folder",
    "view_folder",
    "why_unfit",
]
