"""What the store does to the disk, as functions of a folder, and what must hold of that folder after a kill.

The folder holds `journal` and `features`. No network: features are a function of clip id and frame.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.store import (
    Journal,
    Layout,
    Quarantined,
    clip_copies,
    committing,
    compact,
    open_view,
    publish,
    stored_clips,
)
from pipeline.store.format.records import read_record
from pipeline.store.format.rows import verify_shard
from pipeline.store.upkeep.care import Damage, journal_checks, repair, verify, view_checks
from pipeline.store.upkeep.gc import Need, find_garbage, remove_garbage
from pipeline.store.upkeep.repack import repack
from tests.support.features import (
    assert_holds,
    clip_maps,
    clip_source,
    frame_times,
    make_contract,
    make_layout,
    make_writer,
)

CONTRACT = make_contract()
OLD = {"walk": 5, "long": 40}
FEW = {"walk": 5, "blink": 1, "longer": 45}  # of NEW: more than a tenth of the rows are of other clips
NEW = {"walk": 5, "long": 40, "blink": 1, "run": 22, "longer": 45}
BAD = "bad"  # a clip that the decoder rejects


@dataclass(frozen=True)
class Case:
    """`work` is killed in a folder that `prepare` made, and run again until it ends."""

    prepare: Callable[[Path, str], None]  # of the folder and the container
    work: Callable[[Path, str], None]
    clips: Mapping[str, int]  # in the view after `work`
    removes: str = "nothing"  # codec of the layout that `work` removes


def layout_of(container: str, **changes: object) -> Layout:
    return make_layout(CONTRACT, **{"format": container, "rows_per_shard": 16, **changes})


def extract(folder: Path, layout: Layout, clips: Mapping[str, int], *, repacking: bool = False) -> None:
    """What stages.extract does, with a stand-in for the decoder and the network."""
    journal = Journal(folder / "journal")
    forward_digest = CONTRACT.forward_digest()
    with journal.lock(forward_digest, on_wait=print):
        digests = journal.digest_cache()
        digests.digest(__file__)
        digests.save()
        stored = stored_clips(journal.records(CONTRACT, layout).values())
        missing = [clip_id for clip_id in clips if clip_source(clip_id).key not in stored]
        journal.sweep(CONTRACT, layout)
        if repacking:
            keys = [clip_source(clip_id).key for clip_id in missing]
            repack(journal, keys, contract=CONTRACT, layout=layout, commit_seconds=1e9)
        elif missing:
            _compute(journal, layout, missing, clips)
            bad = clip_source(BAD)
            journal.quarantine(forward_digest, bad.key, Quarantined(BAD, bad.source, "not a video", 0))
        records = journal.records(CONTRACT, layout)
        stored = clip_copies(records.values())
        copies = {clip_id: stored[clip_source(clip_id).key] for clip_id in clips}
        view = compact(journal, copies, records, contract=CONTRACT, layout=layout)
        publish(journal, [view], folder / "features", files={"quarantine.csv": b"clip_id\n"})


def _compute(journal: Journal, layout: Layout, clip_ids: list[str], clips: Mapping[str, int]) -> None:
    """On two threads, which write shards of their own."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(_write, journal, layout, clips), (clip_ids[::2], clip_ids[1::2])))


def _write(journal: Journal, layout: Layout, clips: Mapping[str, int], clip_ids: list[str]) -> None:
    """Clips in pieces of nine frames, with a commit after each clip's first, as if time had passed."""
    writer = make_writer(journal, CONTRACT, layout)
    with committing(writer):
        for clip_id in clip_ids:
            maps, times = clip_maps(clip_id, clips[clip_id]), frame_times(clips[clip_id])
            for first in range(0, len(maps), 9):
                piece = slice(first, first + 9)
                final = first + 9 >= len(maps)
                writer.append(clip_source(clip_id), maps[piece], times[piece], final=final)
                if first == 0:
                    writer.commit()


def prepare_nothing(folder: Path, container: str) -> None:
    pass


def prepare_old_view(folder: Path, container: str) -> None:
    extract(folder, layout_of(container), OLD)


def prepare_new_features(folder: Path, container: str) -> None:
    """The journal has everything; the view is an old one."""
    extract(folder, layout_of(container), NEW)
    extract(folder, layout_of(container), OLD)


def prepare_new_view(folder: Path, container: str) -> None:
    extract(folder, layout_of(container), NEW)


def prepare_other_layout(folder: Path, container: str) -> None:
    extract(folder, layout_of(container, codec="lz4", rows_per_chunk=2), NEW)


def prepare_damage(folder: Path, container: str) -> None:
    """One bit of one shard, which journal and view share, is not what was written."""
    extract(folder, layout_of(container), NEW)
    path = min((folder / "journal").rglob("*.record"))
    record = read_record(path)
    shard = path.with_name(record.shard_name)
    data = bytearray(shard.read_bytes())
    data[record.chunks["offset"][0]] ^= 1
    shard.chmod(0o644)  # a published file is read-only
    shard.write_bytes(data)


def prepare_garbage(folder: Path, container: str) -> None:
    """Features in a layout that nobody wants any more, and what a killed process left."""
    prepare_other_layout(folder, container)
    extract(folder, layout_of(container), NEW)
    (folder / "journal/.digests.arrow.partial-01234567").write_bytes(b"cut off")


def work_extract(folder: Path, container: str) -> None:
    extract(folder, layout_of(container), NEW)


def work_extract_few(folder: Path, container: str) -> None:
    extract(folder, layout_of(container), FEW)


def work_repack(folder: Path, container: str) -> None:
    extract(folder, layout_of(container), NEW, repacking=True)


def work_repair(folder: Path, container: str) -> None:
    repair(folder / "journal", view=folder / "features", find_copies=lambda _: [], on_wait=print)
    extract(folder, layout_of(container), NEW)


def work_gc(folder: Path, container: str) -> None:  # noqa: ARG001
    journal = Journal(folder / "journal")
    with journal.exclusive(on_wait=print):
        records = (folder / "features").glob("*/records/*")
        needs = [Need("the view", frozenset(record.stem for record in records))]
        remove_garbage(journal, find_garbage(journal, needs, now_seconds=0, training_days=1))


CASES = {
    "extraction": Case(prepare_nothing, work_extract, NEW),
    "extraction of more": Case(prepare_old_view, work_extract, NEW),
    "publication": Case(prepare_new_features, work_extract, NEW),
    "compaction": Case(prepare_new_view, work_extract_few, FEW),
    "repack": Case(prepare_other_layout, work_repack, NEW),
    "repair": Case(prepare_damage, work_repair, NEW),
    "gc": Case(prepare_garbage, work_gc, NEW, removes="lz4"),
}


def committed(folder: Path, *, but: str = "nothing") -> set[tuple[str, str, bytes]]:
    """(contract, layout, clip key) of all that the journal has undamaged, but for layouts of one codec."""
    found: set[tuple[str, str, bytes]] = set()
    if not (folder / "journal").exists():
        return found
    journal = Journal(folder / "journal")
    for contract in journal.contracts():
        for layout in journal.layouts(contract):
            directory = journal.directory(contract, layout)
            records = journal.records(contract, layout).values()
            whole = [record for record in records if not verify_shard(directory / record.shard_name, record)]
            if layout.codec != but:
                found |= {(contract.digest(), layout.name, key) for key in stored_clips(whole)}
    return found


def view_state(folder: Path) -> str:
    """ "absent", "damaged", or the clips of the view, all read and found right."""
    if not (folder / "features").exists():
        return "absent"
    path = folder / "features" / CONTRACT.tap
    try:
        with open_view(path) as view:
            clips = {clip_id: view.num_frames(clip_id) for clip_id in view.clip_ids()}
        assert_holds(path, clips)
    except StoreError:
        return "damaged"
    return ", ".join(clips)


def damages(folder: Path) -> list[Damage]:
    """What `verify` finds in the journal, once there is one, and in the view."""
    journal = journal_checks(folder / "journal") if (folder / "journal/format.json").exists() else []
    return verify([*journal, *view_checks(folder / "features")])


def litter(folder: Path) -> list[str]:
    """Unfinished files, and shards without a record."""
    shards = [p for p in (folder / "journal/contracts").glob("*/*/*") if p.suffix in (".shard", ".h5")]
    orphans = [path for path in shards if not path.with_suffix(".record").exists()]
    return [str(path.relative_to(folder)) for path in [*folder.rglob(".*.partial-*"), *orphans]]
