from types import SimpleNamespace

import jax
import pytest

from llama_jax.parallel.devices import free_bytes, peak_flops


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),  # the longest name that fits counts
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),  # half a chip
        ("TPU v3", 61.5e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
        ("TPU v9", None),
    ],
)
def test_the_peak_is_that_of_the_kind(kind, peak):
    assert peak_flops(kind) == peak


@pytest.mark.parametrize(
    ("told", "left"),
    [
        ([{"bytes_limit": 100, "bytes_in_use": 30}, {"bytes_limit": 100, "bytes_in_use": 60}], 40),
        ([{"bytes_limit": 100}], 100),
        ([{"bytes_limit": 100}, None], None),  # as a CPU
    ],
)
def test_the_fullest_device_says_what_is_left(monkeypatch, told, left):
    devices = [SimpleNamespace(memory_stats=lambda stats=stats: stats) for stats in told]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert free_bytes() == left
