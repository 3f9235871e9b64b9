"""Memory: what a batch frees is kept for the next one, and which errors say that there is none left."""

import ctypes
import re

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc: <malloc.h>


def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, up to its peak, instead of returning it to the kernel.

    Else each large tensor of each batch is mapped, zeroed page by page and unmapped again, which takes a
    quarter of the time of ResNet-50 on a CPU, and a third of that of an LSTM's epoch over whole maps.
    Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


# torch.OutOfMemoryError is GPUs' alone: on CPUs, and where the driver allocates, it is a RuntimeError.
_NO_MEMORY = re.compile("(can't allocate|not enough|out of) memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory could not be had, be it the host's or a GPU's."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))
    )
