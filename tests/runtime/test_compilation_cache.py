"""Where compiled programs are kept."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from llama_jax.runtime.compilation_cache import DEFAULT, keep_programs
from llama_jax.runtime.places import cpu_name

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """No folder is named, and the home folder is another one; as before afterwards."""
    monkeypatch.setenv("HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax_cache.reset_cache()  # jax looks at the folder's name once
    for name, value in zip(NAMES, (None, 1.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def compiled(number):
    """Compile a small program that no other test has; its value."""
    return jax.jit(lambda x: x * number + 7)(jnp.arange(3)).tolist()


def test_small_programs_are_kept_in_a_folder_of_this_kind_of_cpu(unset, tmp_path):
    keep_programs()
    assert compiled(3) == [7, 10, 13]
    folder = tmp_path / ".cache/llama_jax/xla" / cpu_name()
    assert len(list(folder.glob("jit__lambda*-cache"))) == 1


@pytest.mark.parametrize(
    "content", [b"", pytest.param(b"half of an entry", marks=pytest.mark.slow)]
)
def test_an_entry_that_is_cut_short_costs_a_compilation(unset, tmp_path, content, recwarn):
    keep_programs(str(tmp_path / "c"))
    assert compiled(5) == [7, 12, 17]
    for entry in (tmp_path / "c").iterdir():
        entry.write_bytes(content)
    assert compiled(5) == [7, 12, 17]
    assert list(recwarn) == []


def test_a_folder_that_the_environment_or_the_experiment_names_is_kept(unset, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    keep_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    keep_programs(str(tmp_path / "named"))
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "named")
    keep_programs("")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "named")
    assert os.listdir(tmp_path) == ["named"]


def test_a_folder_that_cannot_be_written_costs_time_only(unset, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    keep_programs(str(tmp_path / "file/xla"))
    assert compiled(9) == [7, 16, 25]
    assert jax.config.jax_compilation_cache_dir is None
    (message,) = caplog.messages
    assert message.startswith(f"compilation_cache {tmp_path}/file/xla cannot be written")
    assert DEFAULT == "~/.cache/llama_jax/xla"


def test_tests_share_what_they_compile_with_the_processes_that_they_start():
    """More than half of the tests' time would be compiling the same programs again."""
    kept = os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert jax.config.jax_compilation_cache_dir == (kept or None)
    ask = "import jax; print(jax.config.jax_compilation_cache_dir)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (kept or "None")
