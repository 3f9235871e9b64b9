"""A store of 1,000,000 clips: opening, planning, publishing, memory; and `dvc repro` with nothing to do."""

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from PIL import Image

from benchmarks.report import Report, Row, alternate, arguments, seconds_of
from benchmarks.stores import CLIP_BYTES, CONTAINER_NAMES, NUM_FRAMES, make_target, publish_clips
from pipeline.extract import Target, clip_key, plan, publish_view
from pipeline.files import write_atomically
from pipeline.manifest import Clip
from pipeline.store import DigestCache, Journal, Record
from pipeline.store.records import CHUNK_DTYPE
from pipeline.store.tables import SPAN_SCHEMA
from tests.project import make_project

CLIPS_PER_SOURCE = 100  # time ranges of one file


def main() -> None:
    args = arguments(__doc__)
    report = Report("scale", args.quick)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report.add("A large store", large_store(Path(folder), 100_000 if args.quick else 1_000_000))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report.add("Memory", memory(Path(folder), store_mb=256 if args.quick else 2048))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report.add("dvc repro with nothing to do", [repro(Path(folder), 1_000 if args.quick else 10_000)])
    report.write(args.json)


def large_store(folder: Path, num_clips: int) -> list[Row]:
    target = make_target("zarr")
    root = folder / "corpus"
    clips = make_corpus(root, num_clips)
    journal = Journal(folder / "journal")
    keys = fill(journal, target, clips, root)
    targets = [target]
    features = folder / "features"
    planned: list[Any] = []

    def run_plan() -> None:
        digests = journal.digest_cache()
        planned.append(plan(clips, root=root, targets=targets, journal=journal, digests=digests))

    plan_seconds = seconds_of(run_plan)
    assert planned[0].num_unchanged == num_clips
    assert planned[0].keys == keys
    publish_seconds = seconds_of(lambda: publish_view(keys, targets=targets, journal=journal, path=features))
    opened = probe(OPEN, features / target.contract.tap, str(num_clips))
    return [
        {"what": f"open a view of {num_clips:,} clips", "figure": opened[0], "unit": "s", "target": "< 1"},
        {"what": "memory above the imports", "figure": opened[1], "unit": "MB", "target": "< 300"},
        {"what": "look up all clips in random order", "figure": opened[2], "unit": "µs/clip", "target": None},
        {"what": "plan, all unchanged", "figure": plan_seconds, "unit": "s", "target": "a few"},
        {"what": "publish the view", "figure": publish_seconds, "unit": "s", "target": None},
    ]


def make_corpus(root: Path, num_clips: int) -> list[Clip]:
    """Many clips a source: what a corpus of long videos with annotated segments has."""
    root.mkdir()
    clips = []
    for number in range(num_clips):
        source, segment = divmod(number, CLIPS_PER_SOURCE)
        name = f"video{source:05d}.mp4"
        if segment == 0:
            (root / name).write_bytes(name.encode())
            os.utime(root / name, (1e9, 1e9))
        clips.append(
            Clip(
                clip_id=f"clip{number:07d}",
                sources=(name,),
                split="train",
                start_seconds=float(segment),
                end_seconds=segment + 1.0,
            )
        )
    return clips


def fill(journal: Journal, target: Target, clips: Sequence[Clip], root: Path) -> dict[str, bytes]:
    """Records of full shards of these clips, and sparse shard files; the keys by clip id."""
    digests = DigestCache(root.parent / "digests.arrow")
    keys = {clip.clip_id: clip_key(clip, root=root, digests=digests) for clip in clips}
    contract, layout = target.contract, target.layout
    directory = journal.directory(contract, layout)
    per_shard = layout.rows_per_shard // NUM_FRAMES
    for first in range(0, len(clips), per_shard):
        some = clips[first : first + per_shard]
        num_rows = len(some) * NUM_FRAMES
        spans = pa.table(
            {
                "clip_key": [keys[clip.clip_id] for clip in some],
                "clip_id": [clip.clip_id for clip in some],
                "source": [clip.sources[0] for clip in some],
                "first_frame": np.zeros(len(some), np.int64),
                "row": np.arange(len(some)) * NUM_FRAMES,
                "num_rows": np.full(len(some), NUM_FRAMES),
                "final": np.ones(len(some), bool),
                "previous_shard": pa.nulls(len(some), pa.string()),
                "frame_seconds": pa.ListArray.from_arrays(
                    np.arange(len(some) + 1) * NUM_FRAMES, np.arange(num_rows) / 25
                ),
            },
            schema=SPAN_SCHEMA,
        )
        chunks = np.zeros(-(-num_rows // layout.rows_per_chunk), CHUNK_DTYPE)
        chunks["offset"] = np.arange(len(chunks)) * layout.chunk_bytes
        chunks["size_bytes"] = layout.chunk_bytes
        record = Record(
            shard_id=xxhash.xxh3_128_hexdigest(first.to_bytes(8)),
            contract=contract,
            layout=layout,
            spans=spans,
            chunks=chunks,
            rest_checksum=0,
        )
        with (directory / record.shard_name).open("wb") as file:
            file.truncate(len(chunks) * layout.chunk_bytes)
        write_atomically(directory / record.record_name, record.to_bytes())
    return keys


# Each probe runs in its own process, because peak memory is a process's. It prints its figures.
PEAK = """
import sys, time
from pathlib import Path
import numpy as np
from pipeline.store import open_view
def peak_mb():
    # Not getrusage: its peak is inherited from the parent process.
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
"""

OPEN = PEAK + textwrap.dedent("""
    before, started = peak_mb(), time.perf_counter()
    view = open_view(Path(sys.argv[1]))
    print(time.perf_counter() - started, peak_mb() - before)
    ids = view.clip_ids()
    assert len(ids) == int(sys.argv[2])
    order = np.random.default_rng(0).permutation(len(ids))[:100_000].tolist()
    started = time.perf_counter()
    assert all(view.num_frames(ids[i]) == 16 for i in order)
    print((time.perf_counter() - started) / len(order) * 1e6)
""")

# Page cache that a process reads is not its memory; a memory-mapped store would be.
READ = PEAK + textwrap.dedent("""
    view = open_view(Path(sys.argv[1]))
    ids = view.clip_ids()
    out = np.empty((16, 16, *view.map_shape), view.dtype)
    out[:] = 0
    before = peak_mb()
    for number, clip_id in enumerate(ids):
        view.read_into(clip_id, out[number % 16])
    print(peak_mb() - before)
""")

WRITE = PEAK + textwrap.dedent("""
    from itertools import repeat
    from benchmarks.stores import CLIP_SHAPE, make_target, write_clips
    folder, container, num_clips = sys.argv[1:]
    maps = np.random.default_rng(0).standard_normal(CLIP_SHAPE, np.float32).astype(np.float16)
    write_clips(Path(folder, "warm"), make_target(container), repeat(maps, 16))
    before = peak_mb()
    write_clips(Path(folder, "journal"), make_target(container), repeat(maps, int(num_clips)))
    print(peak_mb() - before)
""")


def probe(code: str, *args: str | Path) -> list[float]:
    """What the code prints, run in a fresh process."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def memory(folder: Path, *, store_mb: int) -> list[Row]:
    """Peak memory while a store several times larger streams through, beyond what its first clips took."""
    num_clips = (store_mb << 20) // CLIP_BYTES
    rows: list[Row] = []
    for container in CONTAINER_NAMES:
        here = folder / container
        (write_mb,) = probe(WRITE, here, container, str(num_clips))
        tap = publish_clips(here / "features", make_target(container), num_clips, journal=here / "journal")
        (read_mb,) = probe(READ, tap)
        for what, grown_mb in (("write", write_mb), ("read", read_mb)):
            row = {"container": container, "what": what, "store_mb": store_mb, "memory_grows_by_mb": grown_mb}
            rows.append(row)
        shutil.rmtree(here)
    return rows


def repro(folder: Path, num_clips: int) -> Row:
    """The whole pipeline over small images, each a clip; then again, with nothing to do."""
    project = make_project(folder)
    shutil.rmtree(project.videos)
    project.videos.mkdir()
    rng = np.random.default_rng(0)
    lines = ["clip_id,source,split,label"]
    for number in range(num_clips):
        name = f"{number % 100:02d}/image{number:05d}.png"
        (project.videos / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(project.videos / name)
        split = ("train", "val", "test")[number % 3]
        lines.append(f"clip{number:05d},{name},{split},{'ab'[number // 3 % 2]}")
    (project.path / "manifests/mine.csv").write_text("\n".join(lines) + "\n")
    project.dvc("repro")
    seconds = alternate({"repro": lambda: project.dvc("repro")}, num_rounds=3)["repro"]
    assert "up to date" in project.dvc("repro")
    version_seconds = seconds_of(lambda: project.dvc("--version"))
    return {"clips": num_clips, "seconds": seconds, "target": "< 3", "dvc_version_seconds": version_seconds}


if __name__ == "__main__":
    main()
