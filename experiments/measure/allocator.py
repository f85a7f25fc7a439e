"""Keep freed memory instead of returning it to the system at every training step (CPU, glibc)."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of glibc's mallopt(3)


def keep_freed_memory() -> bool:
    """Tell glibc to keep the pages that a step frees, for the next step to use.

    By default glibc gives large freed blocks back to the system and every training step takes them
    again, page fault by page fault: backpropagation looks 5-15 % slower than it is. All commands
    here call this, so that what is compared is compared alike; call it in scripts of your own too.

    Returns:
        Whether the setting took (it needs Linux with glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return bool(mallopt and mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
