"""JAX environment variables that would break a command: ignored with a warning."""

import logging
import os

from llama_jax.config import InputError

logger = logging.getLogger(__name__)
# What whole programs do that these forbid. jax has not read them yet.
_SET_ASIDE = {
    "JAX_TRANSFER_GUARD": "arrays have to get to the devices and back",
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE": "arrays have to get to the devices",
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST": "results have to get back",
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE": "arrays have to be laid out anew",
    "JAX_NUMPY_DTYPE_PROMOTION": "optimizers and checkpoints mix types",
}
_HARMLESS = ("", "allow", "log", "standard")


def settle() -> None:
    """Remove variables that would break any command, with a warning for each. jax must not be
    imported yet."""
    for name, why in _SET_ASIDE.items():
        value = os.environ.get(name, "")
        if value.lower() not in _HARMLESS:
            del os.environ[name]
            logger.warning("%s=%s is ignored: %s", name, value, why)


def require_jit(command: str) -> None:
    """Raise InputError if compiling is turned off, for commands that compile ahead of time."""
    value = os.environ.get("JAX_DISABLE_JIT", "")
    if value.lower() in ("1", "true", "t", "yes", "y", "on"):
        raise InputError(
            f"JAX_DISABLE_JIT={value}: {command} compiles its step ahead of time; unset it "
            "(generate and eval obey it)"
        )
