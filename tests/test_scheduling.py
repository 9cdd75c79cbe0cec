"""A test that takes its worker with it fails alone: every other test still runs, each once."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = """
import pytest

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from tests.scheduling import Together
    return Together(config, log)
"""

SEPARATE = """
import os
import pytest

@pytest.mark.parametrize("number", range(10))
def test_separate(number):
    with open("ran", "a") as ran:
        ran.write(f"separate {number}\\n")
    if number == 3:
        os._exit(1)
"""

TOGETHER = """
import os
import pytest

@pytest.fixture(scope="module")
def shared():
    return "together"

@pytest.mark.parametrize("number", range(10))
def test_together(number, shared):
    with open("ran", "a") as ran:
        ran.write(f"together {number}\\n")
    if number == 4:
        os._exit(1)
"""


@pytest.mark.slow
def test_a_dead_worker_fails_one_test(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    scheduling = Path(__file__).with_name("scheduling.py").read_text()
    for name, text in {
        "__init__": "",
        "scheduling": scheduling,
        "conftest": CONFTEST,
        "test_separate": SEPARATE,
        "test_together": TOGETHER,
    }.items():
        (tmp_path / "tests" / f"{name}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--rootdir", ".", "tests"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert "2 failed, 18 passed" in done.stdout, done.stdout
    ran = (tmp_path / "ran").read_text().splitlines()
    assert sorted(ran) == sorted(
        f"{kind} {n}" for kind in ("separate", "together") for n in range(10)
    )
