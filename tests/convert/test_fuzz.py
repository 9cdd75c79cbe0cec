"""Every reader takes a mutated file or refuses it in one line, within 2 s and 1 GiB (fuzz.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.convert.fuzz import READERS

COUNT = int(os.environ.get("FUZZ_MUTATIONS", "500"))
SEED = os.environ.get("FUZZ_SEED") or "1"
"""The same mutations in every run of the tests; another seed makes others."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("reader", READERS)
def test_mutations_are_read_or_refused(tmp_path, reader):
    """In a process of its own, which a fault of the C libraries below may end."""
    print(f"seed {SEED}: FUZZ_SEED={SEED} repeats it")
    command = [sys.executable, "-m", "tests.convert.fuzz", reader, SEED, "0", str(COUNT)]
    done = subprocess.run(
        [*command, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        # No cache of programs: what a mutation compiles would be a file that it writes.
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_COMPILATION_CACHE_DIR": ""},
        capture_output=True,
        text=True,
    )
    at = (tmp_path / "current").read_text() if (tmp_path / "current").exists() else "none"
    assert done.returncode == 0, f"at mutation {at}: {done.stdout[-6000:]}{done.stderr[-3000:]}"
