"""Reading 16-frame clips in random order into a batch: against preadv, the codecs, and other stores."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr
from numcodecs import blosc
from torch.utils.data import DataLoader, Dataset

from benchmarks.report import Report, Row, alternate, arguments
from benchmarks.stores import (
    CLIP_BYTES,
    CLIP_SHAPE,
    CONTAINER_NAMES,
    Codec,
    Container,
    clip_id,
    make_clips,
    make_target,
    publish_clips,
    write_clips,
)
from pipeline.store import FeatureView, open_view, read_record
from pipeline.store.format.containers import CONTAINERS
from pipeline.store.format.rows import ShardRows

BATCH_SIZE = 8

Order = Sequence[int]
# An epoch over the clips in this order: batches (B, T, C, H, W), each valid until the next.
Epoch = Callable[[Order], Iterator[np.ndarray]]
ReadInto = Callable[[int, np.ndarray], None]


def main() -> None:
    args = arguments(__doc__)
    report = Report("read", args.quick)
    num_clips, num_rounds = (64, 3) if args.quick else (512, 11)
    clips = make_clips(num_clips)
    order = np.random.default_rng(1).permutation(num_clips).tolist()
    with tempfile.TemporaryDirectory(dir=args.folder) as name, contextlib.ExitStack() as closer:
        folder = Path(name)
        bench = Bench(folder, clips, order, num_rounds, closer)
        report.add(
            "Uncompressed, warm page cache, relative to preadv of the same bytes", bench.uncompressed()
        )
        report.add(
            "Compressed, warm page cache, relative to the codec's own decompression", bench.compressed()
        )
        report.add("Against other stores, warm page cache", bench.others())
        report.add("Against other stores, cold page cache", bench.cold())
    report.write(args.json)


class Bench:
    """The stores under one folder, and the order in which all are read."""

    def __init__(
        self,
        folder: Path,
        clips: list[np.ndarray],
        order: Order,
        num_rounds: int,
        closer: contextlib.ExitStack,
    ) -> None:
        self.folder, self.clips, self.order, self.num_rounds = folder, clips, order, num_rounds
        self.closer = closer
        # One for all contenders: whether the system gave it huge pages is a third of the speed.
        self.buffer = np.zeros((BATCH_SIZE, *CLIP_SHAPE), np.float16)
        self.contenders: dict[str, Epoch] = {}

    def into_buffer(self, read: ReadInto, pool: ThreadPoolExecutor, num_threads: int) -> Epoch:
        """Clips read one by one into the batch, each thread its share of it."""
        buffer = self.buffer

        def share(numbers: Order, first: int) -> None:
            for i in range(first, len(numbers), num_threads):
                read(numbers[i], buffer[i])

        def epoch(order: Order) -> Iterator[np.ndarray]:
            for start in range(0, len(order), BATCH_SIZE):
                numbers = order[start : start + BATCH_SIZE]
                if num_threads == 1:
                    share(numbers, 0)
                else:
                    list(pool.map(share, [numbers] * num_threads, range(num_threads)))
                yield buffer[: len(numbers)]

        return epoch

    def view(self, container: Container, codec: Codec = "none") -> FeatureView:
        here = self.folder / f"{container}-{codec}"
        target = make_target(container, codec)
        if not here.exists():
            write_clips(here / "journal", target, self.clips)
            publish_clips(here / "features", target, len(self.clips), journal=here / "journal")
        return self.closer.enter_context(open_view(here / "features" / target.contract.tap))

    def check(self, epoch: Epoch) -> None:
        """Compare every clip with the written one before anything is timed."""
        seen = 0
        for batch in epoch(self.order):
            for maps in batch:
                np.testing.assert_array_equal(maps, self.clips[self.order[seen]])
                seen += 1
        assert seen == len(self.order)

    def rates(self, contenders: dict[str, Epoch], *, num_rounds: int) -> dict[str, float]:
        """GB/s by contender."""
        for epoch in contenders.values():
            self.check(epoch)
        runs = {name: self.run(epoch) for name, epoch in contenders.items()}
        seconds = alternate(runs, num_rounds=num_rounds)
        return {name: self.gigabytes / value for name, value in seconds.items()}

    def run(self, epoch: Epoch) -> Callable[[], None]:
        def run() -> None:
            for _ in epoch(self.order):
                pass

        return run

    @property
    def gigabytes(self) -> float:
        return len(self.order) * CLIP_BYTES / 1e9

    def uncompressed(self) -> list[Row]:
        rows = []
        for container in CONTAINER_NAMES:
            for num_threads in (1, 2):
                view = self.view(container)
                pool = self.closer.enter_context(ThreadPoolExecutor(num_threads))
                ours = self.into_buffer(reader(view), pool, num_threads)
                contenders = {
                    "preadv": self.into_buffer(plain_preadv(view), pool, num_threads),
                    "framecache": ours,
                    "first pass": verifying(view, ours),
                }
                rates = self.rates(contenders, num_rounds=8 * self.num_rounds)
                rows.append(
                    {
                        "container": container,
                        "threads": num_threads,
                        "preadv_gb_per_s": rates["preadv"],
                        "framecache_gb_per_s": rates["framecache"],
                        "ratio": rates["framecache"] / rates["preadv"],
                        "target": ">= 0.8",
                        "first_pass_gb_per_s": rates["first pass"],
                        "first_pass_ratio": rates["first pass"] / rates["preadv"],
                        "its_target": ">= 0.5",
                    }
                )
        return rows

    def compressed(self) -> list[Row]:
        rows = []
        codecs: tuple[Codec, ...] = ("lz4", "zstd")
        pool = self.closer.enter_context(ThreadPoolExecutor(2))
        for container in CONTAINER_NAMES:
            for codec in codecs:
                view = self.view(container, codec)
                contenders = {
                    "codec": self.into_buffer(decompress(view), pool, 2),
                    "framecache": self.into_buffer(reader(view), pool, 2),
                }
                if container == "zarr" and (array := zarrs_array(view.path)):
                    contenders["zarrs"] = self.into_buffer(slices(array, view), pool, 1)
                rates = self.rates(contenders, num_rounds=2 * self.num_rounds)
                rows.append(
                    {
                        "container": container,
                        "codec": codec,
                        "codec_gb_per_s": rates["codec"],
                        "framecache_gb_per_s": rates["framecache"],
                        "ratio": rates["framecache"] / rates["codec"],
                        "target": ">= 0.8",
                        "zarrs_gb_per_s": rates.get("zarrs"),
                    }
                )
        return rows

    def others(self) -> list[Row]:
        """Write the other stores, which `cold` reads too, and compare."""
        pool = self.closer.enter_context(ThreadPoolExecutor(2))
        view, hdf5 = self.view("zarr"), self.view("hdf5")
        self.contenders = {
            "framecache, Zarr, 2 threads": self.into_buffer(reader(view), pool, 2),
            "framecache, HDF5, 2 threads": self.into_buffer(reader(hdf5), pool, 2),
            "preadv, 2 threads": self.into_buffer(plain_preadv(view), pool, 2),
            "zarr-python": self.into_buffer(slices(zarr.open_array(view.path, mode="r"), view), pool, 1),
            "np.load, a file a clip": self.into_buffer(numpy_files(self.folder / "npy", self.clips), pool, 1),
            "h5py, DataLoader, 2 workers": h5py_loader(self.folder / "clips.h5", self.clips),
        }
        if array := zarrs_array(view.path):
            self.contenders["zarrs"] = self.into_buffer(slices(array, view), pool, 1)
        if dataset := litdata_dataset(self.folder / "litdata", self.clips):
            self.contenders["LitData"] = self.into_buffer(items(dataset), pool, 1)
        if dataset := mosaic_dataset(self.folder / "mosaic", self.clips):
            self.contenders["Mosaic Streaming"] = self.into_buffer(items(dataset), pool, 1)
        return self.compare(self.rates(self.contenders, num_rounds=self.num_rounds))

    def cold(self) -> list[Row]:
        runs = {name: self.run(epoch) for name, epoch in self.contenders.items()}
        seconds = alternate(runs, num_rounds=3, before=lambda: drop_cache(self.folder))
        return self.compare({name: self.gigabytes / value for name, value in seconds.items()})

    def compare(self, rates: dict[str, float]) -> list[Row]:
        ours = rates["framecache, Zarr, 2 threads"]
        ordered = sorted(rates.items(), key=lambda item: -item[1])
        return [{"store": name, "gb_per_s": rate, "of_framecache": rate / ours} for name, rate in ordered]


def reader(view: FeatureView) -> ReadInto:
    return lambda number, out: view.read_into(clip_id(number), out)


def verifying(view: FeatureView, epoch: Epoch) -> Epoch:
    """The epoch of a view that has verified no chunk yet."""

    def first(order: Order) -> Iterator[np.ndarray]:
        for shard in view._shards.values():
            assert isinstance(shard, ShardRows)
            shard._unverified[:] = b"\1" * len(shard._unverified)
        yield from epoch(order)

    return first


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of a file."""

    descriptor: int
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Span:
    """Consecutive rows of a clip, from the records alone."""

    first_frame: int
    first_row: int  # of the view's whole array
    rows: list[Piece]  # as stored


def spans_of(view: FeatureView) -> list[list[Span]]:
    """Each clip's spans in frame order."""
    layout = view.layout
    assert layout.codec == "none" or layout.rows_per_chunk == 1
    container = CONTAINERS[layout.format]
    spans: dict[str, list[Span]] = {}
    for number, path in enumerate(sorted((view.path / "records").iterdir())):  # shards are numbered by id
        record = read_record(path)
        descriptor = os.open(view.path / container.shard_path(number), os.O_RDONLY)
        for row in record.spans.drop_columns(["frame_seconds"]).to_pylist():
            rows = []
            for i in range(row["row"], row["row"] + row["num_rows"]):
                chunk, skip = divmod(i, layout.rows_per_chunk)
                offset, size_bytes, _ = record.chunks[chunk].tolist()
                size_bytes = layout.row_bytes if layout.codec == "none" else size_bytes
                rows.append(Piece(descriptor, offset + skip * layout.row_bytes, size_bytes))
            first_row = number * layout.rows_per_shard + row["row"]
            spans.setdefault(row["clip_id"], []).append(Span(row["first_frame"], first_row, rows))
    return [sorted(spans[name], key=lambda span: span.first_frame) for name in sorted(spans)]


def rows_of(view: FeatureView) -> list[list[Piece]]:
    """Each clip's rows in frame order."""
    return [[row for span in spans for row in span.rows] for spans in spans_of(view)]


def plain_preadv(view: FeatureView) -> ReadInto:
    """One preadv for each contiguous stretch of a clip."""
    stretches: list[list[Piece]] = []
    for rows in rows_of(view):
        clip: list[Piece] = []
        for row in rows:
            last = clip[-1] if clip else None
            if last and (last.descriptor, last.offset + last.size_bytes) == (row.descriptor, row.offset):
                clip[-1] = Piece(last.descriptor, last.offset, last.size_bytes + row.size_bytes)
            else:
                clip.append(row)
        stretches.append(clip)

    def read(number: int, out: np.ndarray) -> None:
        buffer = out.data.cast("B")
        for piece in stretches[number]:
            count = os.preadv(piece.descriptor, [buffer[: piece.size_bytes]], piece.offset)
            assert count == piece.size_bytes
            buffer = buffer[count:]

    return read


def decompress(view: FeatureView) -> ReadInto:
    """The codec alone: stored chunks that are in memory already, each into its place."""
    stored = [
        [os.pread(row.descriptor, row.size_bytes, row.offset) for row in rows] for rows in rows_of(view)
    ]

    def read(number: int, out: np.ndarray) -> None:
        for chunk, row in zip(stored[number], out, strict=True):
            blosc.decompress(chunk, row)

    return read


def slices(array: Any, view: FeatureView) -> ReadInto:
    """A clip as rows of the view's Zarr array."""
    spans = spans_of(view)

    def read(number: int, out: np.ndarray) -> None:
        for span in spans[number]:
            num_rows = len(span.rows)
            rows = array[span.first_row : span.first_row + num_rows]
            out[span.first_frame : span.first_frame + num_rows] = rows

    return read


def zarrs_array(path: Path) -> Any | None:
    if find_spec("zarrs") is None:
        return None
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        return zarr.open_array(path, mode="r")


def numpy_files(folder: Path, clips: list[np.ndarray]) -> ReadInto:
    folder.mkdir()
    paths = [folder / f"{number}.npy" for number in range(len(clips))]
    for path, maps in zip(paths, clips, strict=True):
        np.save(path, maps)

    def read(number: int, out: np.ndarray) -> None:
        out[:] = np.load(paths[number])

    return read


class Hdf5Clips(Dataset[np.ndarray]):
    """What people write first: one dataset, a clip a chunk, opened in each worker."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._maps: h5py.Dataset | None = None

    def __getitem__(self, number: int) -> np.ndarray:
        if self._maps is None:
            self._maps = h5py.File(self._path)["maps"]
        clip: np.ndarray = self._maps[number]
        return clip


def h5py_loader(path: Path, clips: list[np.ndarray]) -> Epoch:
    with h5py.File(path, "w") as file:
        maps = file.create_dataset("maps", (len(clips), *CLIP_SHAPE), np.float16, chunks=(1, *CLIP_SHAPE))
        for number, clip in enumerate(clips):
            maps[number] = clip

    def epoch(order: Order) -> Iterator[np.ndarray]:
        dataset = Hdf5Clips(path)
        loader = DataLoader(dataset, batch_size=BATCH_SIZE, sampler=list(order), num_workers=2)
        for batch in loader:
            yield batch.numpy()

    return epoch


def litdata_dataset(folder: Path, clips: list[np.ndarray]) -> Any | None:
    if find_spec("litdata") is None:
        return None
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    folder.mkdir()
    writer = BinaryWriter(str(folder), chunk_bytes=64 << 20)
    for number, maps in enumerate(clips):
        writer[number] = {"maps": maps.reshape(-1)}
    writer.done()
    writer.merge()
    return StreamingDataset(str(folder), shuffle=False)


def mosaic_dataset(folder: Path, clips: list[np.ndarray]) -> Any | None:
    if find_spec("streaming") is None:
        return None
    from streaming import MDSWriter, StreamingDataset

    shape = ",".join(map(str, CLIP_SHAPE))
    with MDSWriter(out=str(folder), columns={"maps": f"ndarray:float16:{shape}"}) as writer:
        for maps in clips:
            writer.write({"maps": maps})
    return StreamingDataset(local=str(folder), batch_size=1)


def items(dataset: Any) -> ReadInto:
    def read(number: int, out: np.ndarray) -> None:
        out[:] = np.asarray(dataset[number]["maps"]).reshape(CLIP_SHAPE)

    return read


def drop_cache(folder: Path) -> None:
    """Ask the kernel to forget every file's pages; those that a process has mapped stay."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


if __name__ == "__main__":
    main()
