"""A store of 1,000,000 clips: opening, planning, publishing, memory; Dask; `dvc repro` with nothing to do."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import xxhash
from distributed import Client, LocalCluster
from PIL import Image

from benchmarks.corpora import FULL_SIZE, VIDEO, VIDEO_FRAMES, copy_video, extract, make_weights
from benchmarks.report import Report, Row, alternate, arguments, in_fresh_process, seconds_of
from benchmarks.stores import CLIP_BYTES, CONTAINER_NAMES, NUM_FRAMES, make_target, publish_clips
from pipeline.backbone import Backbone
from pipeline.backbone.weights import save_weights
from pipeline.extraction import PlannedClip, Target, clip_key, make_plan, make_targets, publish_view
from pipeline.extraction.cluster import dask as extract_dask
from pipeline.extraction.cluster.dask_worker import PROGRESS_SECONDS
from pipeline.manifest import SPLITS, Clip, write_manifest
from pipeline.settings.extract import ExtractConfig
from pipeline.settings.machine import Machine
from pipeline.store import DigestCache, Journal, Record
from pipeline.store.format.records import CHUNK_DTYPE
from pipeline.store.format.tables import SPAN_SCHEMA
from pipeline.system.files import write_atomically
from tests.support.extraction import sources_of
from tests.support.project import make_project

CLIPS_PER_SOURCE = 100  # time ranges of one file


def main() -> None:
    args = arguments(__doc__)
    report = Report("scale", args.quick)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report.add("A large store", large_store(Path(folder), 100_000 if args.quick else 1_000_000))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        report.add("Dask workers with a thread each", dask_workers(Path(folder), quick=args.quick))
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        title = "What Dask costs the client, extrapolated to 1,000,000 clips and 100 workers"
        report.add(title, client_cost(Path(folder), 100_000 if args.quick else 1_000_000))
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
        sources = sources_of(clips, root=root, digests=journal.digest_cache())
        planned.append(make_plan(clips, sources=sources, targets=targets, journal=journal))

    plan_seconds = seconds_of(run_plan)
    assert planned[0].num_unchanged == num_clips
    assert planned[0].keys == keys
    publish_seconds = seconds_of(lambda: publish_view(keys, targets=targets, journal=journal, path=features))
    opened = in_fresh_process(OPEN, features / target.contract.tap, num_clips)
    return [
        {"what": f"open a view of {num_clips:,} clips", "figure": opened[0], "unit": "s", "target": "< 1"},
        {"what": "memory above the imports", "figure": opened[1], "unit": "MB", "target": "< 300"},
        {"what": "look up all clips in random order", "figure": opened[2], "unit": "µs/clip", "target": None},
        {"what": "plan, all unchanged", "figure": plan_seconds, "unit": "s", "target": "a few"},
        {"what": "publish the view", "figure": publish_seconds, "unit": "s", "target": None},
    ]


def make_corpus(root: Path, num_clips: int) -> list[Clip]:
    """Many clips a source, as in a corpus of long videos with annotated segments."""
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
    """Commit these clips, without values; the keys by clip id."""
    digests = DigestCache(root.parent / "digests.arrow")
    contents = sources_of(clips, root=root, digests=digests).contents
    keys = {clip.clip_id: clip_key(clip, contents) for clip in clips}
    commit(journal, target, clips, keys)
    return keys


def commit(journal: Journal, target: Target, clips: Sequence[Clip], keys: Mapping[str, bytes]) -> None:
    """Records of full shards of these clips, and sparse shard files."""
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
            shard_id=xxhash.xxh3_128_hexdigest(keys[some[0].clip_id]),
            contract=contract,
            layout=layout,
            spans=spans,
            chunks=chunks,
            rest_checksum=0,
        )
        with (directory / record.shard_name).open("wb") as file:
            file.truncate(len(chunks) * layout.chunk_bytes)
        write_atomically(directory / record.record_name, record.to_bytes())


PROBE = """
import sys, time
from pathlib import Path
import numpy as np
from benchmarks.report import peak_mb
from pipeline.store import open_view
"""

OPEN = PROBE + textwrap.dedent("""
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
READ = PROBE + textwrap.dedent("""
    view = open_view(Path(sys.argv[1]))
    ids = view.clip_ids()
    out = np.empty((16, 16, *view.map_shape), view.dtype)
    out[:] = 0
    before = peak_mb()
    for number, clip_id in enumerate(ids):
        view.read_into(clip_id, out[number % 16])
    print(peak_mb() - before)
""")

WRITE = PROBE + textwrap.dedent("""
    from itertools import repeat
    from benchmarks.stores import CLIP_SHAPE, make_target, write_clips
    folder, container, num_clips = sys.argv[1:]
    maps = np.random.default_rng(0).standard_normal(CLIP_SHAPE, np.float32).astype(np.float16)
    write_clips(Path(folder, "warm"), make_target(container), repeat(maps, 16))
    before = peak_mb()
    write_clips(Path(folder, "journal"), make_target(container), repeat(maps, int(num_clips)))
    print(peak_mb() - before)
""")


def memory(folder: Path, *, store_mb: int) -> list[Row]:
    """Peak memory while a large store streams through, beyond what its first clips took."""
    num_clips = (store_mb << 20) // CLIP_BYTES
    rows: list[Row] = []
    for container in CONTAINER_NAMES:
        here = folder / container
        (write_mb,) = in_fresh_process(WRITE, here, container, num_clips)
        tap = publish_clips(here / "features", make_target(container), num_clips, journal=here / "journal")
        (read_mb,) = in_fresh_process(READ, tap)
        for what, grown_mb in (("write", write_mb), ("read", read_mb)):
            row = {"container": container, "what": what, "store_mb": store_mb, "memory_grows_by_mb": grown_mb}
            rows.append(row)
        shutil.rmtree(here)
    return rows


def dask_workers(folder: Path, *, quick: bool) -> list[Row]:
    """ResNet-18 at 224 over video by one worker and by two, and by one process with two threads."""
    weights = make_weights("resnet18")
    save_weights(weights, path=folder / "weights")
    clips = copy_video(VIDEO, folder / "corpus", num_clips=8 if quick else 24)
    num_frames = 16 if quick else VIDEO_FRAMES
    clips = [Clip(c.clip_id, c.sources, "train", end_seconds=num_frames / 25 - 0.001) for c in clips]
    backbone = Backbone(weights, taps=["layer4"], device=torch.device("cpu"))
    out = folder / "out"

    def alone() -> None:
        config = ExtractConfig(preprocessing=FULL_SIZE)
        extract(
            clips,
            root=folder / "corpus",
            folder=out,
            weights=weights,
            backbone=backbone,
            config=config,
            machine=Machine(batch_size=16),
        )

    def over_dask(address: str) -> None:
        config = ExtractConfig(preprocessing=FULL_SIZE)
        targets = make_targets(config, weights, backbone)
        journal = Journal(out / "journal")
        sources = sources_of(clips, root=folder / "corpus", digests=journal.digest_cache())
        todo = make_plan(clips, sources=sources, targets=targets, journal=journal)
        result = extract_dask.compute_on_workers(
            todo.to_extract,
            root=folder / "corpus",
            targets=targets,
            weights=folder / "weights",
            journal=journal,
            config=config,
            machine=Machine(dask=address, batch_size=16),
        )
        assert result.num_clips == len(clips), result

    with contextlib.ExitStack() as stack:
        contenders: dict[str, Callable[[], None]] = {"one process, 2 threads": alone}
        for count in (1, 2):
            cluster = LocalCluster(
                n_workers=count, threads_per_worker=1, memory_limit=0, dashboard_address="127.0.0.1:0"
            )
            address = stack.enter_context(cluster).scheduler_address
            contenders[f"workers: {count}"] = partial(over_dask, address)
        before = partial(shutil.rmtree, out, ignore_errors=True)
        for run in contenders.values():  # what is imported and allocated at first
            before()
            run()
        seconds = alternate(contenders, num_rounds=1 if quick else 3, before=before)
    one = seconds["workers: 1"]
    return [
        {
            "how": name,
            "frames_per_s": len(clips) * num_frames / seconds[name],
            "of_one_worker": one / seconds[name],
        }
        for name in contenders
    ]


NUM_WORKERS = 100
WORKER_FRAMES_PER_S = 20  # ResNet-50 on two cores

# Workers that commit their clips without computing them. They share one process, so that the client has one
# of its own. The seconds that a task reports decide how many clips the next tasks get.
PRETENDERS = textwrap.dedent("""
    import sys, time
    from distributed import LocalCluster, get_worker
    from benchmarks import scale
    from pipeline.extraction.cluster import dask_worker
    from pipeline.extraction.result import Result
    from pipeline.store import Journal

    def refuse_nobody(context):
        return None

    def pretend(context, task, planned):
        clips = [each.clip for each in planned]
        keys = {each.clip.clip_id: each.key for each in planned}
        scale.commit(Journal(context.journal), context.targets[0], clips, keys)
        num_frames = 16 * len(clips)
        return Result(num_frames=num_frames, num_clips=len(clips), num_batches=num_frames // 32,
                      seconds=num_frames / scale.WORKER_FRAMES_PER_S)

    dask_worker.why_refused, dask_worker.compute_chunk = refuse_nobody, pretend
    if __name__ == "__main__":
        with LocalCluster(n_workers=int(sys.argv[1]), processes=False, threads_per_worker=1,
                          memory_limit=0, dashboard_address="127.0.0.1:0", protocol="tcp") as cluster:
            print(cluster.scheduler_address, flush=True)
            sys.stdin.read()
""")


def chatter(topic: str, count: int) -> None:
    """Run by a worker: sends `count` events like those of a task's progress."""
    from distributed import get_worker

    for number in range(count):
        get_worker().log_event(topic, [number, 1, 2, 3])


@contextlib.contextmanager
def pretenders(num_workers: int) -> Iterator[str]:
    """The address of their scheduler."""
    command = [sys.executable, "-c", PRETENDERS, str(num_workers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("")


def client_cost(folder: Path, num_clips: int) -> list[Row]:
    """CPU seconds of the client's process alone, without scheduler and workers."""
    target = make_target("zarr")
    clips = make_corpus(folder / "corpus", num_clips)
    planned = [
        PlannedClip(clip, number.to_bytes(16), "new", (target.contract.tap,))
        for number, clip in enumerate(clips)
    ]
    config = ExtractConfig(preprocessing=FULL_SIZE)
    with pretenders(NUM_WORKERS) as address:
        journal = Journal(folder / "journal")
        started, cpu_started = time.perf_counter(), time.process_time()
        result = extract_dask.compute_on_workers(
            planned,
            root=folder / "corpus",
            targets=[target],
            weights=folder / "weights",
            journal=journal,
            config=config,
            machine=Machine(dask=address),
        )
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        assert result.num_clips == num_clips, result
        with Client(address, set_as_default=False) as client:
            poll_seconds = cpu_seconds_of(client.scheduler_info, num_times=20)
            heard: list[object] = []
            client.subscribe_topic("chatter", heard.append)

            def talk() -> None:
                client.submit(chatter, "chatter", 2000, pure=False).result()
                while len(heard) % 2000:
                    time.sleep(0.01)

            event_seconds = cpu_seconds_of(talk, num_times=5) / 2000
    clip_seconds = cpu_seconds / num_clips
    run_seconds = 1e6 * NUM_FRAMES / (NUM_WORKERS * WORKER_FRAMES_PER_S)
    events = run_seconds * NUM_WORKERS / PROGRESS_SECONDS
    busy_seconds = 1e6 * clip_seconds + run_seconds * poll_seconds + events * event_seconds
    what = f"{num_clips:,} clips given out, computed by nobody, and collected"
    return [
        {"what": what, "figure": seconds, "unit": "s"},
        {"what": "of that the client's CPU time, a clip", "figure": clip_seconds * 1e6, "unit": "µs"},
        {
            "what": f"to look after {NUM_WORKERS} workers, every second",
            "figure": poll_seconds * 1e3,
            "unit": "ms",
        },
        {"what": "to hear of a task's progress", "figure": event_seconds * 1e6, "unit": "µs"},
        {"what": f"a run at {WORKER_FRAMES_PER_S} frames/s a worker", "figure": run_seconds, "unit": "s"},
        {"what": "the client's CPU time in it", "figure": busy_seconds, "unit": "s"},
        {"what": "share", "figure": 100 * busy_seconds / run_seconds, "unit": "%"},
    ]


def cpu_seconds_of(work: Callable[[], object], *, num_times: int) -> float:
    work()
    started = time.process_time()
    for _ in range(num_times):
        work()
    return (time.process_time() - started) / num_times


def repro(folder: Path, num_clips: int) -> Row:
    """The whole pipeline over small images, each a clip; then again, with nothing to do."""
    project = make_project(folder)
    shutil.rmtree(project.videos)
    project.videos.mkdir()
    rng = np.random.default_rng(0)
    clips = []
    for number in range(num_clips):
        name = f"{number % 100:02d}/image{number:05d}.png"
        (project.videos / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(project.videos / name)
        split, label = tuple(SPLITS)[number % 3], "ab"[number // 3 % 2]
        clips.append(Clip(f"clip{number:05d}", (name,), split, label=label))
    write_manifest(project.path / "manifests/mine.csv", clips)
    project.dvc("repro")
    seconds = alternate({"repro": lambda: project.dvc("repro")}, num_rounds=3)["repro"]
    assert project.dvc("repro").count("Running stage") == 1  # settings
    version_seconds = seconds_of(lambda: project.dvc("--version"))
    return {"clips": num_clips, "seconds": seconds, "target": "< 3", "dvc_version_seconds": version_seconds}


if __name__ == "__main__":
    main()
