"""Codecs of a chunk: none, or Blosc's lz4 or zstd after a bitshuffle. Zarr and HDF5 share the bytes."""

from typing import Any

import numpy as np
from numcodecs import blosc

# Compression level by codec: zstd gains little beyond 1 on float features and loses half its speed.
_LEVELS = {"lz4": 5, "zstd": 1}

# Blosc's own threads would serialise ours: each call runs in its caller's thread.
blosc.use_threads = False


def encode(chunk: memoryview, *, codec: str, itemsize: int) -> memoryview:
    """The chunk as stored."""
    if codec == "none":
        return chunk
    data: bytes = blosc.compress(
        chunk, codec.encode(), _LEVELS[codec], shuffle=blosc.BITSHUFFLE, typesize=itemsize
    )
    return memoryview(data)


def decode_into(data: bytes | bytearray | memoryview, out: memoryview, *, codec: str) -> None:
    """Decompress a stored chunk (of a codec other than none) into `out`, of exactly its size.

    Raises RuntimeError or ValueError when it does not decompress.
    """
    assert codec != "none"
    blosc.decompress(data, np.frombuffer(out, np.uint8))


def zarr_codecs(codec: str, *, itemsize: int) -> list[dict[str, Any]]:
    """What to append to a Zarr array's list of codecs."""
    if codec == "none":
        return []
    configuration = {
        "typesize": itemsize,
        "cname": codec,
        "clevel": _LEVELS[codec],
        "shuffle": "bitshuffle",
        "blocksize": 0,
    }
    return [{"name": "blosc", "configuration": configuration}]


def hdf5_filter(codec: str) -> dict[str, Any]:
    """Arguments of h5py's create_dataset. Reading takes `import hdf5plugin`."""
    if codec == "none":
        return {}
    import hdf5plugin

    name: Any = codec
    return dict(hdf5plugin.Blosc(cname=name, clevel=_LEVELS[codec], shuffle=hdf5plugin.Blosc.BITSHUFFLE))
