"""Codecs of a chunk: none, or Blosc's lz4 or zstd after a bitshuffle. Zarr and HDF5 share the bytes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numcodecs import blosc

# Compression level by codec. On float features, zstd gains little beyond 1 and loses half its speed.
CODECS: dict[str, int] = {"none": 0, "lz4": 5, "zstd": 1}


def encode(chunk: memoryview, *, codec: str, itemsize: int) -> memoryview:
    """The bytes of a chunk as they are stored. Equal chunks give equal bytes."""
    if codec == "none":
        return chunk
    with on_one_thread():
        data: bytes = blosc.compress(
            chunk, codec.encode(), CODECS[codec], shuffle=blosc.BITSHUFFLE, typesize=itemsize
        )
    return memoryview(data)


def decode_into(data: bytes | bytearray | memoryview, out: memoryview) -> None:
    """Decompress a stored chunk, of a codec other than none, into `out`, which has exactly its size.

    Call it inside of `on_one_thread`. Raises RuntimeError or ValueError when it does not decompress.
    """
    blosc.decompress(data, np.frombuffer(out, np.uint8))


@contextmanager
def on_one_thread() -> Iterator[None]:
    """In the block, this thread's calls of Blosc use no threads of Blosc's own.

    Those would make callers take turns, and compress blocks in any order. By default, numcodecs uses them
    in the main thread alone, so only the main thread changes the setting, and no two threads do.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, blosc.use_threads = blosc.use_threads, False
    try:
        yield
    finally:
        blosc.use_threads = before


def zarr_codecs(codec: str, *, itemsize: int) -> list[dict[str, Any]]:
    """What this codec adds to the list of codecs of a Zarr array with items of `itemsize` bytes."""
    if codec == "none":
        return []
    configuration = {
        "typesize": itemsize,
        "cname": codec,
        "clevel": CODECS[codec],
        "shuffle": "bitshuffle",
        "blocksize": 0,
    }
    return [{"name": "blosc", "configuration": configuration}]


def hdf5_filter(codec: str) -> dict[str, Any]:
    """Arguments of h5py's create_dataset. To read such a file, h5py needs `import hdf5plugin`."""
    if codec == "none":
        return {}
    import hdf5plugin

    name: Any = codec
    return dict(hdf5plugin.Blosc(cname=name, clevel=CODECS[codec], shuffle=hdf5plugin.Blosc.BITSHUFFLE))
