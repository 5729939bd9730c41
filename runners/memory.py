"""Memory that a long process has let go of, given back to the system."""

import ctypes
import gc
import sys
from typing import Final

import pyarrow as pa

_GLIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def give_back() -> None:
    """Gives back what is free but held: by cycles, by Arrow, and by malloc between its blocks.

    A runner in this process has a thread for each worker's stream, and glibc an arena for each thread:
    after a run hundreds of MiB are free in holes that the next run's threads don't fill. Where there
    is no glibc the last step is left out.

    >>> give_back()
    """
    gc.collect()
    pa.default_memory_pool().release_unused()
    if trim := getattr(_GLIBC, "malloc_trim", None):
        trim(0)
