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
        "JAX_TRANSFER_GUARD=disallow is not followed",
        "JAX_NUMPY_DTYPE_PROMOTION=strict is not followed",
    ]


@pytest.mark.parametrize(
    ("flags", "given", "threads"),
    [
        ("--xla_force_host_platform_device_count=2", None, "8"),
        ("--xla_a=1 --xla_force_host_platform_device_count=8", None, "32"),
        ("--xla_force_host_platform_device_count=2", "3", "3"),
        ("--xla_force_host_platform_device_count=1", None, None),
        ("", None, None),
    ],
)
def test_devices_of_one_cpu_get_threads_to_wait_in(monkeypatch, flags, given, threads):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("NPROC", given or "")  # what was before comes back
    if given is None:
        monkeypatch.delenv("NPROC")
    environment.settle()
    assert environment.os.environ.get("NPROC") == threads


def test_training_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_JIT", "0")
    environment.require_jit("train")
    monkeypatch.setenv("JAX_DISABLE_JIT", "True")
    with pytest.raises(InputError, match=r"^JAX_DISABLE_JIT=True: train compiles its step ahead"):
        environment.require_jit("train")
