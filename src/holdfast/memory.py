"""How this process deals with memory it has freed."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""mallopt(3), malloc.h."""
KEPT_BYTES_MAX: Final = 16 * 1024 * 1024
"""The largest frame with its parts, plain and sealed."""


def keep_freed() -> None:
    """Keep up to ``KEPT_BYTES_MAX`` of freed memory for each thread, and take blocks up to that size from it.

    By itself glibc gives blocks of 128 KiB and more back to the kernel at once, and the end of the heap when that much
    of it is free. Contents and frames are of that size: each then costs page faults for memory that had been there a
    moment before (measured: a twelfth of capturing a delivery). Does nothing where the C library has no mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            mallopt(parameter, KEPT_BYTES_MAX)
