"""Save, restore on another layout, fall back from any damage, keep, clean, fail in one line."""

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
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax import storage
from llama_jax.checkpoint import (
    Checkpointer,
    CheckpointError,
    load_params,
    save_model,
    verify,
)
from llama_jax.config import InputError


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt_state: Any


def sharding(devices: int, spec: P) -> NamedSharding:
    mesh = jax.make_mesh(
        (devices,), ("a",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    return NamedSharding(mesh, spec)


def make_state(seed: int = 0, devices: int = 8) -> State:
    """A training state: two sharded matrices, a replicated bfloat16 vector, an empty array."""
    rng = np.random.default_rng(seed)
    split, whole = sharding(devices, P("a")), sharding(devices, P())
    params = {
        "layers": {"q": jax.device_put(rng.standard_normal((16, 512), np.float32), split)},
        "head": jax.device_put(rng.standard_normal((8, 24), np.float32), split),
        "norm": jax.device_put(jnp.asarray(rng.standard_normal(5), jnp.bfloat16), whole),
        "none": jax.device_put(jnp.zeros((0, 4)), whole),
    }
    opt_state = optax.adamw(1e-3).init(params)
    return State(jax.device_put(jnp.int32(seed), whole), params, opt_state)


def abstract(tree: Any, devices: int | None = None) -> Any:
    """ShapeDtypeStructs laid out over `devices` (None: NumPy arrays)."""

    def one(x: Any) -> jax.ShapeDtypeStruct:
        if devices is None:
            return jax.ShapeDtypeStruct(x.shape, x.dtype)
        spec = P("a") if x.ndim and x.size and x.shape[0] % devices == 0 else P()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(devices, spec))

    return jax.tree.map(one, tree)


def assert_same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(directory: Path, steps: list[int], **kwargs: Any) -> None:
    with Checkpointer(directory, keep=kwargs.pop("keep", 9), **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"data": f"fingerprint {step}"})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A run folder with the steps 1 and 2."""
    run = tmp_path_factory.mktemp("saved") / "run"
    save(run / "checkpoints", [1, 2])
    return run


@pytest.fixture
def run(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


# ---- What is saved comes back


def test_eight_devices_save_and_four_one_and_numpy_restore(run):
    with Checkpointer(run / "checkpoints", keep=1) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        for devices in (8, 4, 1, None):
            wanted = abstract(make_state(), devices)
            step, tree, extra = checkpoints.restore(wanted)
            assert (step, extra) == (2, {"data": "fingerprint 2"})
            assert_same(tree, make_state(2))
            for leaf, a in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True):
                if devices is None:
                    assert type(leaf) is np.ndarray
                else:
                    assert leaf.sharding == a.sharding
        assert checkpoints.restore(abstract(make_state()), step=1).step == 1
    assert sorted(os.listdir(run / "checkpoints")) == ["1", "2"]  # restoring deletes nothing


def test_arrays_may_be_donated_while_they_are_written(tmp_path):
    step = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
    tree = {"w": jnp.ones((1024, 1024)), "v": jnp.zeros(3)}
    with Checkpointer(tmp_path / "c", keep=9) as checkpoints:
        for i in range(4):
            checkpoints.save(i, tree)
            tree = step(tree)
        checkpoints.wait()
        for i in range(4):
            restored = checkpoints.restore(abstract(tree), step=i).tree
            assert (restored["w"] == 1 + i).all()
            assert (restored["v"] == i).all()


def test_a_save_is_listed_only_when_it_is_durable(tmp_path, monkeypatch):
    rename, order = storage._rename_durably, []
    with Checkpointer(tmp_path / "c", keep=9) as checkpoints:

        def watched(folder, final):
            order.append((sorted(os.listdir(folder)), checkpoints.steps()))
            rename(folder, final)

        monkeypatch.setattr(storage, "_rename_durably", watched)
        checkpoints.save(7, make_state())
        checkpoints.wait()
        assert order == [(["manifest.json", "state"], [])]
        assert checkpoints.steps() == [7]


def test_another_tree_is_bad_input_that_lists_the_differences(run):
    wanted: Any = abstract(make_state())
    del wanted.params["head"]
    wanted.params["extra"] = wanted.params["norm"]
    wanted.params["layers"]["q"] = jax.ShapeDtypeStruct((16, 5), jnp.float32)
    wanted.params["norm"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    with (
        Checkpointer(run / "checkpoints", keep=1) as checkpoints,
        pytest.raises(InputError) as caught,
    ):
        checkpoints.restore(wanted)
    text = str(caught.value)
    for expected in (
        "params/extra is not in it",
        "params/head is in it as well",
        "params/layers/q is float32[16, 512], not float32[16, 5]",
        "params/norm is bfloat16[5], not float32[5]",
    ):
        assert expected in text
    assert "\n" not in text


def test_nothing_saved_is_bad_input(tmp_path):
    with Checkpointer(tmp_path / "none", keep=1) as checkpoints:
        assert checkpoints.steps() == []
        with pytest.raises(InputError, match="none holds no checkpoint"):
            checkpoints.restore(abstract(make_state()))
    assert not (tmp_path / "none").exists()


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


# ---- Which saves are kept


def test_retention_keeps_the_newest_and_the_multiples(tmp_path):
    save(tmp_path / "c", [1, 2, 3, 4, 5, 6, 7], keep=2, keep_every=3)
    assert sorted(os.listdir(tmp_path / "c")) == ["3", "6", "7"]


def test_nothing_goes_before_a_newer_save_is_durable(tmp_path, monkeypatch):
    save(tmp_path / "c", [1])

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_rename_durably", fails)
    with Checkpointer(tmp_path / "c", keep=1) as checkpoints:
        checkpoints.save(2, make_state(2))
        with pytest.raises(CheckpointError, match=r"c/2 failed: .*No space left on device"):
            checkpoints.wait()
        monkeypatch.undo()
        assert os.listdir(tmp_path / "c") == ["1"]
        checkpoints.save(3, make_state(3))  # the next one works
        checkpoints.wait()
        assert os.listdir(tmp_path / "c") == ["3"]


def test_restored_steps_stay_and_damaged_ones_do_not_count(run, caplog):
    directory = run / "checkpoints"
    (directory / "2/manifest.json").write_text("{}")
    with Checkpointer(directory, keep=1) as checkpoints:
        assert checkpoints.restore(abstract(make_state())).step == 1
        checkpoints.save(2, make_state(2))  # replaces the damaged one
        checkpoints.wait()
        assert checkpoints.restore(abstract(make_state())).step == 2
    (directory / "2").rename(directory / "6")  # a later step, damaged
    with Checkpointer(directory, keep=2) as checkpoints:
        assert checkpoints.restore(abstract(make_state())).step == 1
        for step in (3, 4, 5):
            checkpoints.save(step, make_state(step))
    assert sorted(os.listdir(directory)) == ["1", "4", "5", "6"]


def test_a_step_that_is_saved_again_is_replaced(run, caplog):
    with Checkpointer(run / "checkpoints", keep=9) as checkpoints:
        checkpoints.save(2, make_state(5))
        checkpoints.wait()
        assert_same(checkpoints.restore(abstract(make_state(), 8)).tree, make_state(5))
    assert sorted(os.listdir(run / "checkpoints")) == ["1", "2"]


def test_leftovers_go_when_the_next_save_starts_and_not_before(run):
    directory = run / "checkpoints"
    for name in ("3.tmp", "2.old.tmp"):
        shutil.copytree(directory / "2/state", directory / name / "state")
    (directory / "notes").mkdir()
    with Checkpointer(directory, keep=9) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        checkpoints.restore(abstract(make_state()))
        assert (directory / "3.tmp").exists()
        checkpoints.save(3, make_state(3))
    assert sorted(os.listdir(directory)) == ["1", "2", "3", "notes"]


# ---- Object stores, which cannot rename


def test_without_renaming_the_manifest_comes_last(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(storage, "can_rename", lambda path: False)
    run = tmp_path / "run"
    directory = run / "checkpoints"
    save(directory, [1, 2])
    assert sorted(os.listdir(directory)) == ["1", "2"]
    shutil.copytree(directory / "2/state", directory / "3/state")  # a save that was killed
    with Checkpointer(directory, keep=1) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(abstract(make_state())).step == 2
        assert "manifest.json is missing" in caplog.text
        checkpoints.save(4, make_state(4))
        checkpoints.wait()
        assert sorted(os.listdir(directory)) == ["2", "4"]
        write, complete = checkpoints._writer._orbax.save, []

        def watched(folder, **kwargs):
            complete.append((directory / "4/manifest.json").exists())
            write(folder, **kwargs)

        monkeypatch.setattr(checkpoints._writer._orbax, "save", watched)
        checkpoints.save(4, make_state(5))
        assert complete == [False]  # half of the new one must not pass for the old one
    assert_same(load_params(run, abstract(make_state().params)), make_state(5).params)


# ---- Failures


def test_full_disk_and_unwritable_folders_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with Checkpointer(tmp_path / "file/c", keep=1) as checkpoints:
        with pytest.raises(CheckpointError, match=r"file/c/1 failed: .*Not a directory") as caught:
            checkpoints.save(1, make_state())
        assert "\n" not in str(caught.value)
        checkpoints.wait()  # told once


def test_an_error_in_the_block_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "_rename_durably", fails)

    def interrupted():
        with Checkpointer(tmp_path / "c", keep=1) as checkpoints:
            checkpoints.save(1, make_state())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert "No space left on device" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full(tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine lets root mount nothing")
    try:
        tree = {"w": jax.random.normal(jax.random.key(0), (512, 1024))}
        with Checkpointer(disk / "c", keep=9) as checkpoints:
            checkpoints.save(1, tree)
            checkpoints.wait()
            checkpoints.save(2, tree)
            with pytest.raises(CheckpointError, match=r"c/2 failed: No space left on device$"):
                checkpoints.save(3, tree)
            assert os.listdir(disk / "c") == ["1"]
            assert checkpoints.restore(abstract(tree)).step == 1
        assert not caplog.records  # orbax's own tracebacks of the same
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ---- Model folders, verify


def test_model_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = make_state(3).params
    save_model("model", params, '{"a": 1}\n', b"pieces", {"from": "test"})
    model = tmp_path / "model"
    assert sorted(os.listdir(tmp_path)) == ["model"]
    assert sorted(os.listdir(model)) == [
        "config.json",
        "manifest.json",
        "params",
        "tokenizer.model",
    ]
    assert (model / "config.json").read_text() == '{"a": 1}\n'
    assert '"from": "test"' in (model / "manifest.json").read_text()
    for devices in (4, None):
        assert_same(load_params("model", abstract(params, devices)), params)
    [report] = verify("model")
    assert report.ok
    assert sorted(report.arrays) == ["head", "layers/q", "none", "norm"]
    with pytest.raises(InputError, match="exists and is not empty"):
        save_model("model", params, "", b"", {})
    (model / "tokenizer.model").write_bytes(b"Pieces")
    with pytest.raises(CheckpointError, match=r"model failed: tokenizer.model is damaged"):
        load_params(model, abstract(params))
    assert verify(model)[0].problem == "tokenizer.model is damaged (its SHA-256 does not agree)"


def test_numpy_arrays_can_be_saved(tmp_path):
    params = {"w": np.arange(6, dtype=np.int8).reshape(2, 3), "s": np.full((), 2, np.float32)}
    save_model(tmp_path / "m", params, "{}", b"", {})
    for devices in (None, 1):
        assert_same(load_params(tmp_path / "m", abstract(params, devices)), params)


def test_parameters_of_a_run_without_its_optimizer_state(run, caplog):
    for path in files(run / "checkpoints/2/state"):
        path.write_bytes(path.read_bytes()[:-1])
    wanted = abstract(make_state().params, 2)
    assert_same(load_params(run, wanted), make_state(1).params)
    assert "checkpoints/2 cannot be used" in caplog.text
    del wanted["head"]
    with pytest.raises(InputError, match="params/head is in it as well"):
        load_params(run, wanted)


def test_paths_that_hold_nothing_of_ours_are_bad_input(tmp_path):
    for function in (verify, lambda path: load_params(path, abstract(make_state().params))):
        with pytest.raises(InputError, match="nor"):
            function(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        verify(tmp_path / "nowhere")


def test_verify_takes_a_run_one_checkpoint_or_their_folder(run):
    directory = run / "checkpoints"
    assert [r.step for r in verify(run)] == [r.step for r in verify(directory)] == [1, 2]
    assert [r.path.name for r in verify(directory / "2")] == ["2"]
    (directory / "2/manifest.json").unlink()
    assert [r.problem for r in verify(run)] == [None, "manifest.json is missing"]
    assert [r.ok for r in verify(directory / "2")] == [False]


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
        lines += process.communicate()[0].splitlines()
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
