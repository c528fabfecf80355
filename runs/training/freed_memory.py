"""Have the C library keep the large blocks that an update frees and takes again."""

from __future__ import annotations

import ctypes


def keep_freed_memory() -> None:
    """Raise glibc's thresholds for returning memory to the system; elsewhere nothing happens.

    Handing 16 MB back to the system and faulting it in again, at every operation, costs as much as the arithmetic.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
    for option, size in ((-3, 32 << 20), (-1, 2**31 - 1), (-2, 64 << 20)):
        mallopt(option, size)
