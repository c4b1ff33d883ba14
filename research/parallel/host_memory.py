"""Host memory on a CPU backend: freed temporaries are kept for the next step."""

import ctypes
import sys

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # names and numbers of glibc's malloc.h
ONE_GIGABYTE, LARGEST = 2**30, 2**31 - 1


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to keep what is freed instead of returning it to the system.

    XLA's CPU backend allocates the temporaries of a program anew at every step. By default glibc
    maps large ones and unmaps them when freed, so that every step faults its pages in again: a
    third of the step of a small transformer, as measured. The process keeps its peak instead.

    Returns whether it was done: not on a C library other than glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    kept = mallopt(M_MMAP_THRESHOLD, ONE_GIGABYTE) and mallopt(M_TRIM_THRESHOLD, LARGEST)
    return bool(kept)
