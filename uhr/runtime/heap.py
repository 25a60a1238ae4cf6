"""Memory that a worker frees stays with it for the next image."""

from __future__ import annotations

import ctypes

_TRIM, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""`mallopt` parameters of glibc (malloc.h)."""

KEPT_BYTES = 256 * 2**20
"""Free memory at the top of the heap beyond this goes back to the system: a giant image leaves no giant
behind.
"""


def keep_freed_memory() -> bool:
    """Tell glibc to take large buffers from the heap and to keep up to `KEPT_BYTES` of it; whether it was
    told.

    By default it hands every buffer above 32 MB back as soon as it is freed, and the system zeroes its pages
    anew for the next one: an eighth of the time of decoding 4K images. For worker processes; other C
    libraries are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return all(mallopt(*setting) for setting in ((_MMAP_MAX, 0), (_TRIM, KEPT_BYTES), (_TOP_PAD, 64 * 2**20)))
