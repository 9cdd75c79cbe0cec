"""Freed memory is kept: shown by what the kernel has to hand out again."""

import subprocess
import sys

import pytest

from llama_jax.runtime.malloc import keep_freed_memory

PROGRAM = """
import ctypes, resource, sys
if sys.argv[1] == "kept":
    from llama_jax.runtime.malloc import keep_freed_memory
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
size = 100 << 20

def fill():
    block = libc.malloc(ctypes.c_size_t(size))
    ctypes.memset(block, 1, size)
    libc.free(ctypes.c_void_p(block))

fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(), reason="another C library than glibc")
def test_a_block_taken_again_needs_no_new_pages():
    def new_pages(how):
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
        )
        return int(ran.stdout)

    # At the least, huge pages of 2 MB would need one fault each.
    assert new_pages("kept") < 25 <= 50 <= new_pages("given back")
