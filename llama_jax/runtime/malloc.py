"""malloc tuning for CPU training."""

import ctypes

# <malloc.h> of glibc: the options of mallopt, and values that keep everything.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_KEEP = {_ARENA_MAX: 1, _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 << 20}


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step; returns False with any other C library.

    XLA's CPU backend allocates the temporaries of a step as one block, often hundreds of MB, and
    frees it at the end. glibc gets such a block from the kernel and returns it every time, and the
    kernel clears every page of it anew: a third of the time of a small model's step. With memory
    kept, the process stays as large as its largest step. Call this before jax starts its threads:
    their allocations would come from heaps of their own, which return large blocks regardless.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in _KEEP.items())
