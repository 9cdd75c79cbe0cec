"""Save, restore on another layout, keep, clean, fail in one line; model folders."""

import os
import shutil
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.checkpoint import (
    Checkpointer,
    CheckpointError,
    load_params,
    save_model,
    storage,
    verify,
)
from llama_jax.checkpoint.zarr import PlainArrays
from llama_jax.config import InputError
from tests.checkpoint.training_states import (
    abstract,
    assert_same,
    files,
    make_state,
    run,
    save,
    saved,
)

__all__ = ["run", "saved"]  # fixtures


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
    rename, order = storage.rename_durably, []
    with Checkpointer(tmp_path / "c", keep=9) as checkpoints:

        def watched(folder, final):
            order.append((sorted(os.listdir(folder)), checkpoints.steps()))
            rename(folder, final)

        monkeypatch.setattr(storage, "rename_durably", watched)
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


# ---- Which saves are kept


def test_retention_keeps_the_newest_and_the_multiples(tmp_path):
    save(tmp_path / "c", [1, 2, 3, 4, 5, 6, 7], keep=2, keep_every=3)
    assert sorted(os.listdir(tmp_path / "c")) == ["3", "6", "7"]


def test_nothing_goes_before_a_newer_save_is_durable(tmp_path, monkeypatch):
    save(tmp_path / "c", [1])

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "rename_durably", fails)
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

    monkeypatch.setattr(storage, "rename_durably", fails)

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


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    params = {"w": np.arange(6, dtype=np.int8).reshape(2, 3)}
    save_model(tmp_path / "m", params, "{}", b"", {})
    for path in (tmp_path / "m/params/d").iterdir():
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(CheckpointError, match=r"params/d/\w+ is a pipe or a device, not a file$"):
        load_params(tmp_path / "m", abstract(params, None))
    with pytest.raises(ValueError, match="is a pipe or a device"):
        PlainArrays(tmp_path / "m/params")


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
        with pytest.raises(InputError, match=r"nor a model folder|nor a run folder"):
            function(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        verify(tmp_path / "nowhere")


def test_verify_takes_a_run_one_checkpoint_or_their_folder(run):
    directory = run / "checkpoints"
    assert [r.step for r in verify(run)] == [r.step for r in verify(directory)] == [1, 2]
    assert [r.path.name for r in verify(directory / "2")] == ["2"]
    (directory / "2/manifest.json").unlink()
    assert [r.problem for r in verify(run)] == [None, "manifest.json is missing"]
    shutil.rmtree(directory / "1/state")
    assert [r.problem for r in verify(run)] == [
        "its folder state is missing",
        "manifest.json is missing",
    ]
    assert [r.ok for r in verify(directory / "2")] == [False]


def test_folders_that_are_no_steps_are_none(run):
    directory = run / "checkpoints"
    for name in ("99999999999", "2147483648", "007", "\u0663", "1.0", "3.json"):
        (directory / name).mkdir()
    (directory / "5").touch()
    assert [r.step for r in verify(run)] == [1, 2]
    with Checkpointer(directory, keep=2) as checkpoints:
        assert checkpoints.steps() == [1, 2]
        assert checkpoints.restore(abstract(make_state())).step == 2


def test_a_users_folder_beside_a_model_folder_stays(tmp_path):
    for name in ("model.tmp", "model.old.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes.txt").touch()
    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", make_state().params, "{}", b"", {})
    assert sorted(os.listdir(tmp_path)) == ["model", "model.old.tmp", "model.tmp"]
    assert os.listdir(tmp_path / "model.tmp") == ["notes.txt"]
    assert "manifest.json" in os.listdir(tmp_path / "model")
