"""Runs programs that a model wrote, each in a process of its own with limits.

This is not a sandbox: a program can read what its user can read, and reach the network. It gets no
input, an empty folder, a bare environment, and limits of time, memory and file size; its process
group is killed afterwards. Run it in a container if that is not enough.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

MEMORY_BYTES = 2 << 30
FILE_BYTES = 16 << 20
WORKERS = 2
_RAN = 86
"""Exit status of a program that ran to its last line: one that leaves early, even with status 0,
has not met its tests."""
_BARE = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"}


def passes(program: str, seconds: float) -> bool:
    """Whether a program runs to its last line in time, without an error."""
    with tempfile.TemporaryDirectory(prefix="llama_jax-program-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _LIMITED, str(int(seconds) + 1)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_BARE | {"HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        try:
            process.communicate(program.encode("utf-8", "surrogatepass"), timeout=seconds)
            return process.returncode == _RAN
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def all_pass(programs: Sequence[str], seconds: float) -> list[bool]:
    """`passes` of each program, two at a time."""
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda program: passes(program, seconds), programs))


# The limits are set by the new process itself: nothing may run between fork and exec of a process
# with threads. The program comes on standard input, and reads no more of it.
_LIMITED = f"""
import os, resource, sys
for kind, most in (
    (resource.RLIMIT_CPU, int(sys.argv[1])), (resource.RLIMIT_AS, {MEMORY_BYTES}),
    (resource.RLIMIT_FSIZE, {FILE_BYTES}), (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(kind, (most, most))
program = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
sys.argv = ["program"]
exec(compile(program, "program", "exec"), {{"__name__": "__main__"}})
os._exit({_RAN})
"""
