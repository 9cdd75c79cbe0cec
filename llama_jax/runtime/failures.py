"""Turns errors of the user or the machine into one line and an exit status."""

import signal
import sys
import traceback
from typing import Any, NamedTuple

from llama_jax.config import InputError
from llama_jax.runtime import interrupts

_SMALLER = {
    "train": "use a smaller batch, more devices, or --model.remat full",
    "eval": "use a smaller --batch-size",
    "generate": "convert the model to bfloat16 (llama-jax convert --dtype bfloat16), or use a "
    "machine with more memory",
}


class Failure(NamedTuple):
    """The line to print, and the exit status of the process."""

    line: str
    status: int


def explain(error: BaseException, command: str, *, trains: bool) -> Failure | None:
    """The line for an exception that ended a command; None for a bug in the program.

    trains: whether the command resumes when it is run again.
    """
    came = interrupts.received()
    if isinstance(error, KeyboardInterrupt) or came is not None:
        # Once a signal has come, what fails does so because of it.
        resume = ". Run the same command to resume from the last checkpoint" if trains else ""
        return Failure(f"{interrupts.ended()}{resume}", 128 + (came or signal.SIGINT))
    if isinstance(error, InputError):
        return Failure(str(error), 2)
    if isinstance(error, ImportError) and "gcsfs" in str(error):
        return Failure("gs:// needs gcsfs: pip install gcsfs", 2)
    if isinstance(error, OSError):
        named = error.filename is not None and error.strerror
        return Failure(f"{error.filename}: {error.strerror}" if named else str(error), 1)
    if type(error).__name__ == "TrainingError":
        return Failure(str(error), 1)
    if _of_backends(error):
        said = str(error).splitlines()[0] if str(error) else "it cannot be started here"
        platforms = sys.modules["jax"].config.jax_platforms
        return Failure(f"JAX_PLATFORMS={platforms}: {said}; unset it, or set it to cpu", 2)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        first = (str(error) or "the host ran out of memory").splitlines()[0]
        advice = _SMALLER.get("train" if trains else command)
        return Failure(f"{first}: {advice}" if advice else first, 1)
    if type(error).__name__ == "JaxRuntimeError" and hosts():
        first = str(error).splitlines()[0]
        return Failure(f"a step of all hosts failed, as when one of them ends: {first}", 1)
    return None


def hosts() -> Any:
    """The module `runtime.hosts` if this process is one of several hosts."""
    module = sys.modules.get("llama_jax.runtime.hosts")
    return module if module is not None and module.jax.distributed.is_initialized() else None


def _of_backends(error: BaseException) -> bool:
    """Whether jax raised it because a platform that was asked for is not there."""
    jax = sys.modules.get("jax")
    if jax is None or not jax.config.jax_platforms or not isinstance(error, Exception):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename.endswith("xla_bridge.py") for frame in frames)
