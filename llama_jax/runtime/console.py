"""What a command says, and where: results on stdout and nothing else, the rest on stderr."""

import contextlib
import glob
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Iterator


def quiet_start() -> None:
    """Logs to stderr, any text to stdout; jax is not asked for a TPU that is not there."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a terminal's encoding cannot say is written as its code, as stderr does.
        sys.stdout.reconfigure(errors="backslashreplace")
    for name in ("jax", "grain", "tensorboardX", "gguf"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Orbax (through absl), the threads that it writes with, and gcsfs print the stacks of failures
    # that reach us as exceptions too, which are told in one line.
    for name in ("absl", "asyncio", "concurrent.futures", "gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if "JAX_PLATFORMS" not in os.environ and importlib.util.find_spec("libtpu"):
        chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/*")
        gpus = any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13))
        if not chips and not gpus:
            os.environ["JAX_PLATFORMS"] = "cpu"


@contextlib.contextmanager
def stdout_for_results() -> Iterator[None]:
    """What libraries write to standard output goes to stderr: Gloo, which joins hosts without
    accelerators, says there whom it met."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
