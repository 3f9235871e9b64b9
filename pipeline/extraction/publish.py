"""Publishes the view of a corpus whose features are in the journal."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

from pipeline.errors import PipelineError, listed
from pipeline.extraction.plan import usable_key
from pipeline.extraction.targets import Target
from pipeline.settings.extract import Damaged
from pipeline.store import Journal, clip_copies, compact, publish


@dataclass(frozen=True)
class Faulty:
    """A clip that is published in part or not at all: a row of quarantine.csv."""

    clip_id: str
    source: str
    reason: str
    num_recovered: int  # frames
    policy: Damaged  # what was done


@dataclass(frozen=True)
class Published:
    """The clips of a published view."""

    num_clips: Mapping[str, int]  # by the name of the features' folder
    faulty: tuple[Faulty, ...]  # sorted by clip id


def publish_view(
    keys: Mapping[str, bytes],
    *,
    targets: Sequence[Target],
    journal: Journal,
    path: Path,
    damaged: Damaged = "drop",
    min_frames: int = 1,
    max_failed_share: float = 1.0,
) -> Published:
    """Publish the view of the clips `keys` (key by clip id) that have features, in the folder `path`.

    Clips that the decoder rejected, that a target can't store, or that have fewer than `min_frames` frames
    are listed in `quarantine.csv`. The policies are applied here and not when features are computed: changing
    them computes nothing again. Where more than a tenth of a target's rows would be of no clip, clips are
    first copied to new shards. The caller holds the journal's lock.

    Raises PipelineError, and publishes nothing, when more than `max_failed_share` of the clips are left out.
    """
    rejected = journal.quarantined(targets[0].contract.forward_digest())
    usable: dict[str, bytes] = {}
    faulty: dict[str, Faulty] = {}
    for clip_id, key in keys.items():
        found = usable_key(key, rejected, damaged=damaged, min_frames=min_frames)
        usable[clip_id] = found or key  # what another target stored before it was rejected is whole
        if key in rejected:
            policy: Damaged = "keep" if found else "drop"
            clip = rejected[key]
            faulty[clip_id] = Faulty(clip_id, clip.source, clip.reason, clip.num_recovered, policy)
    stored = []
    for target in targets:
        records = journal.records(target.contract, target.layout)
        copies = clip_copies(records.values())
        clips = {clip_id: copies[key] for clip_id, key in usable.items() if key in copies}
        unfit = journal.quarantined(target.contract.digest())
        for clip_id, key in usable.items():
            if key in unfit and clip_id not in clips:
                before = faulty.get(clip_id, Faulty(clip_id, unfit[key].source, "", 0, "drop"))
                reason = "; ".join(filter(None, (before.reason, unfit[key].reason)))
                faulty[clip_id] = replace(before, reason=reason, policy="drop")
        short = [clip_id for clip_id, (clip, *_) in clips.items() if clip.num_frames < min_frames]
        if short:
            filed = {key: clip for record in records.values() for key, clip in record.clip_sources().items()}
        for clip_id in short:
            num_frames, source = clips.pop(clip_id)[0].num_frames, filed[usable[clip_id]].source
            reason = f"{num_frames} frames, fewer than min_frames ({min_frames})"
            faulty[clip_id] = Faulty(clip_id, source, reason, num_frames, "drop")
        stored.append((target, clips, records))
    rows = tuple(faulty[clip_id] for clip_id in sorted(faulty))
    _check_share([row for row in rows if row.policy == "drop"], num_clips=len(keys), allowed=max_failed_share)
    views = []
    for target, clips, records in stored:
        journal.touch(target.contract)
        views.append(compact(journal, clips, records, contract=target.contract, layout=target.layout))
    publish(journal, views, path, files={"quarantine.csv": _csv(rows)})
    return Published({view.contract.name: len(view.clips) for view in views}, rows)


def _check_share(left_out: Sequence[Faulty], *, num_clips: int, allowed: float) -> None:
    if len(left_out) > allowed * num_clips:
        lines = listed(f"{clip.clip_id}: {clip.reason}" for clip in left_out)
        raise PipelineError(
            f"{len(left_out)} of {num_clips} clips can't be used, more than max_failed_share ({allowed:g})"
            f" allows:\n{lines}\nThe other clips' features are kept. Mend these clips, remove them from the"
            " manifest, or raise max_failed_share."
        )


def _csv(rows: Sequence[Faulty]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(field.name for field in fields(Faulty))
    writer.writerows(astuple(row) for row in rows)
    return buffer.getvalue().encode()
