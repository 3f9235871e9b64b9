"""The view of a corpus, published when its features are in the journal."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.extract.config import Target
from pipeline.store import Journal, TapView, publish, stored_clips


def publish_view(
    keys: Mapping[str, bytes], *, targets: Sequence[Target], journal: Journal, path: Path
) -> dict[str, int]:
    """Publish the view of every clip (key by clip id) that has features; the number of clips by tap.

    The clips that the decoder rejected are listed in `quarantine.csv`.
    """
    views = []
    for target in targets:
        records = journal.records(target.contract, target.layout)
        stored = stored_clips(records.values())
        clips = {clip_id: stored[key] for clip_id, key in keys.items() if key in stored}
        views.append(TapView(target.contract, target.layout, clips, records))
        journal.touch(target.contract)
    rejected = journal.quarantined(targets[0].contract.forward_digest())
    rows = [
        (clip_id, rejected[key].source, rejected[key].reason, rejected[key].num_recovered)
        for clip_id, key in sorted(keys.items())
        if key in rejected
    ]
    publish(journal, views, path, files={"quarantine.csv": _csv(rows)})
    return {view.contract.tap: len(view.clips) for view in views}


def _csv(rows: Sequence[tuple[str, str, str, int]]) -> bytes:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["clip_id", "source", "reason", "num_recovered"])
    writer.writerows(rows)
    return buffer.getvalue().encode()
