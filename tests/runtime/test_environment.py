"""Settings of jax that a user left in the environment."""

import pytest

from llama_jax.config import InputError
from llama_jax.runtime import environment


def test_what_no_program_can_follow_is_set_aside_and_said(monkeypatch, caplog):
    monkeypatch.setenv("JAX_TRANSFER_GUARD", "disallow")
    monkeypatch.setenv("JAX_NUMPY_DTYPE_PROMOTION", "strict")
    monkeypatch.setenv("JAX_TRANSFER_GUARD_DEVICE_TO_HOST", "log")
    monkeypatch.setenv("JAX_DEBUG_NANS", "1")
    environment.settle()
    left = [name for name in ("JAX_TRANSFER_GUARD", "JAX_NUMPY_DTYPE_PROMOTION",
                              "JAX_TRANSFER_GUARD_DEVICE_TO_HOST", "JAX_DEBUG_NANS")
            if environment.os.environ.get(name)]  # fmt: skip
    assert left == ["JAX_TRANSFER_GUARD_DEVICE_TO_HOST", "JAX_DEBUG_NANS"]
    assert [message.split(":")[0] for message in caplog.messages] == [
        "JAX_TRANSFER_GUARD=disallow is ignored",
        "JAX_NUMPY_DTYPE_PROMOTION=strict is ignored",
    ]


def test_training_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_JIT", "0")
    environment.require_jit("train")
    monkeypatch.setenv("JAX_DISABLE_JIT", "True")
    with pytest.raises(InputError, match=r"^JAX_DISABLE_JIT=True: train compiles its step ahead"):
        environment.require_jit("train")
