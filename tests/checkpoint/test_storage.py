"""Damage in any file, kills at any moment, several hosts: equal to what was saved, or named."""

import asyncio
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from llama_jax.checkpoint import Checkpointer, CheckpointError, storage, verify
from tests.checkpoint.training_states import abstract, assert_same, files, make_state, run, saved

__all__ = ["run", "saved"]  # fixtures


# ---- Damage


def restore_newest(run: Path, caplog) -> tuple[int, list[str]]:
    """Step that was restored, equal to what was saved, and the warnings on the way."""
    caplog.clear()
    with Checkpointer(run / "checkpoints", keep=1) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(), 2))
    assert_same(restored.tree, make_state(restored.step))
    assert restored.extra == {"data": f"fingerprint {restored.step}"}
    return restored.step, [r.getMessage() for r in caplog.records if r.name.startswith("llama")]


def assert_harmless_or_named(run: Path, caplog) -> bool:
    """Whether the damage to step 2 was harmless; else it is named and step 1 is restored."""
    step, warnings = restore_newest(run, caplog)
    if step == 2:
        assert warnings == []
        return True
    assert step == 1
    assert len(warnings) == 1
    assert "\n" not in warnings[0]
    assert re.match(
        r"checkpoint \S+/checkpoints/2 cannot be used: .*(array|state/|manifest)", warnings[0]
    )
    return False


def kind_of(path: Path) -> str:
    """Files that hold the same kind of content; names of OCDBT data files are random."""
    return re.sub(r"[0-9a-f]{32}", "DATA", str(path))


@pytest.mark.parametrize("trials", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_flipped_bits_in_every_file_are_harmless_or_named(run, caplog, trials):
    newest = run / "checkpoints/2"
    rng = random.Random(trials)
    outcomes: dict[str, set[bool]] = {}
    for path in files(newest):
        original = path.read_bytes()
        for _ in range(trials if original else 0):
            damaged = bytearray(original)
            damaged[rng.randrange(len(original))] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            harmless = assert_harmless_or_named(run, caplog)
            outcomes.setdefault(kind_of(path.relative_to(newest)), set()).add(harmless)
        path.write_bytes(original)
    assert restore_newest(run, caplog) == (2, [])
    for kind in ("manifest.json", "state/_METADATA", "state/manifest.ocdbt", "state/d/DATA"):
        assert False in outcomes[kind]  # damage was seen in each of these


def test_every_byte_of_array_data_is_covered(run, caplog):
    """Flip one bit in the stored bytes of a known array: the warning names that array."""
    q = np.asarray(make_state(2).params["layers"]["q"])
    hits = []
    for path in files(run / "checkpoints/2/state"):
        data = path.read_bytes()
        if (at := data.find(q[2:4].tobytes())) >= 0:
            hits.append(path)
            path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
    assert hits
    step, warnings = restore_newest(run, caplog)
    assert step == 1
    assert "array params/layers/q is damaged" in warnings[0]
    reports = verify(run)
    assert [(r.step, r.ok) for r in reports] == [(1, True), (2, False)]
    assert [n for n, problem in reports[1].arrays.items() if problem] == ["params/layers/q"]
    assert len(reports[0].arrays) == len(jax.tree.leaves(make_state()))


def test_truncated_and_deleted_files_are_harmless_or_named(run, caplog):
    newest = run / "checkpoints/2"
    for path in files(newest):
        original = path.read_bytes()
        for length in (0, len(original) - 1) if original else ():
            path.write_bytes(original[:length])
            assert_harmless_or_named(run, caplog)
        path.unlink()
        assert_harmless_or_named(run, caplog)
        path.write_bytes(original)
    assert restore_newest(run, caplog) == (2, [])


def test_a_manifest_that_is_missing_or_of_another_step(run, caplog):
    shutil.copy(run / "checkpoints/1/manifest.json", run / "checkpoints/2/manifest.json")
    assert "is that of step 1" in restore_newest(run, caplog)[1][0]
    (run / "checkpoints/2/manifest.json").unlink()
    assert "manifest.json is missing" in restore_newest(run, caplog)[1][0]
    with Checkpointer(run / "checkpoints", keep=1) as checkpoints:
        assert checkpoints.steps() == [1]


def test_no_sound_step_is_an_error_that_names_each(run, caplog):
    (run / "checkpoints/1/manifest.json").write_text("{}")
    shutil.rmtree(run / "checkpoints/2/state")
    with (
        Checkpointer(run / "checkpoints", keep=1) as checkpoints,
        pytest.raises(CheckpointError) as caught,
    ):
        checkpoints.restore(abstract(make_state()))
    assert re.search(r"step 2: .*; step 1: manifest.json is damaged", str(caught.value))
    assert "\n" not in str(caught.value)


# ---- Killed at any moment

VICTIM = """
import sys, jax, jax.numpy as jnp
from llama_jax.checkpoint import Checkpointer
def state(step): return {"w": jnp.full((256, 1024), step, jnp.float32), "step": jnp.int32(step)}
with Checkpointer(sys.argv[1], keep=2) as checkpoints:
    start = 0
    if checkpoints.steps():
        restored = checkpoints.restore(jax.eval_shape(lambda: state(0)))
        assert (restored.tree["w"] == restored.step).all(), "restored wrong numbers"
        assert restored.step == checkpoints.steps()[-1], "did not restore the newest"
        start = restored.step
    print("restored", start, flush=True)
    for step in range(start + 1, start + 1000):
        checkpoints.save(step, state(step))
        print("durable", step - 1, flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments_the_newest_durable_step_comes_back(tmp_path):
    rng = random.Random(0)
    durable = 0
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", VICTIM, str(tmp_path / "c")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first.startswith("restored"), process.communicate()[1]
        assert int(first.split()[1]) >= durable
        lines = [process.stdout.readline() for _ in range(rng.randrange(4))]
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines()
        process.communicate()
        durable = max([durable, *(int(line.split()[1]) for line in lines)])
    assert durable > 4
    assert all(report.ok for report in verify(tmp_path / "c"))


# ---- Several hosts

HOST = """
import sys, logging, jax, jax.numpy as jnp, numpy as np
logging.basicConfig(level=logging.WARNING)
directory, address, index = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
from jax.sharding import NamedSharding, PartitionSpec as P
from llama_jax.checkpoint import Checkpointer, CheckpointError
mesh = jax.make_mesh((4,), ("a",))
def layout(spec): return NamedSharding(mesh, spec)
def state(step):
    w = np.arange(8 * 4096, dtype=np.float32).reshape(8, 4096) * step
    return {"w": jax.make_array_from_callback(w.shape, layout(P("a")), lambda i: w[i]),
            "step": jax.make_array_from_callback((), layout(P()), lambda i: np.int32(step))}
def struct(x): return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
def equal(a, b): return (a["w"] == b["w"]).all() & (a["step"] == b["step"])
with Checkpointer(directory, keep=2) as checkpoints:
    start = 0
    if checkpoints.steps():
        start, tree, _ = checkpoints.restore(jax.tree.map(struct, state(0)))
        assert jax.jit(equal)(tree, state(start))
    print("restored", start)
    for step in range(start + 1, start + 4):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    assert checkpoints.steps() == sorted({start or step, step - 1, step})
jax.distributed.shutdown()
"""


def on_two_hosts(directory: Path) -> list[str]:
    """Run HOST as two processes of two devices each; returns what each printed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, str(directory), address, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        )
        for i in range(2)
    ]
    outputs = [host.communicate(timeout=300) for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    return [out + err for out, err in outputs]


@pytest.mark.slow
def test_two_hosts_save_restore_and_fall_back_together(tmp_path):
    directory = tmp_path / "c"
    assert all("restored 0\n" in text for text in on_two_hosts(directory))
    assert [r.ok for r in verify(directory)] == [True, True]
    assert all("restored 3\n" in text for text in on_two_hosts(directory))
    damaged = 0
    row = (np.arange(5 * 4096, 6 * 4096, dtype=np.float32) * 6).tobytes()
    for path in files(directory / "6/state"):
        data = path.read_bytes()
        if (at := data.find(row)) >= 0:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            damaged += 1
    assert damaged
    for text in on_two_hosts(directory):
        assert "restored 5\n" in text
        assert "/6 cannot be used: array w is damaged" in text


def test_writes_abandoned_after_a_failure_add_no_traceback(tmp_path, monkeypatch):
    """What tensorstore reports has asyncio's frames alone: it calls from C++."""
    told = []
    monkeypatch.setattr(sys, "excepthook", lambda *found: told.append(found))
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    storage._hush_abandoned.cache_clear()
    Checkpointer(tmp_path / "c", keep=1).close()
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError) as caught:
        loop.call_soon_threadsafe(print)
    error, trace = caught.value, caught.value.__traceback__
    sys.excepthook(type(error), error, trace.tb_next)
    assert not told
    sys.excepthook(type(error), error, trace)  # a user's own
    sys.excepthook(ValueError, ValueError("x"), trace.tb_next)
    assert [kind for kind, _, _ in told] == [RuntimeError, ValueError]
    storage._hush_abandoned.cache_clear()
