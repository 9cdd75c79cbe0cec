"""Work in other processes, from any kind of program."""

import os
import subprocess
import sys

import pytest

from llama_jax.config import InputError
from llama_jax.data.processes import Processes

SCRIPT = """
import operator
from llama_jax.data.processes import Processes
with Processes(2) as processes:
    print(sorted(processes.map(operator.neg, [1, 2, 3])))
"""


def test_a_script_needs_no_main_guard_and_no_file():
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[-3, -2, -1]\n", "")


def refuse(job):
    print("this is no answer")
    if job == 3:
        raise InputError("line 3")
    return job


def test_answers_and_what_a_job_raises():
    with Processes(2) as processes:
        assert sorted(processes.map(refuse, [1, 2])) == [1, 2]
        with pytest.raises(InputError, match="line 3"):
            list(processes.map(refuse, [1, 2, 3, 4]))


def test_a_process_that_dies_is_said():
    with Processes(1) as processes, pytest.raises(ChildProcessError, match=r"status 7.*workers 1"):
        list(processes.map(os._exit, [7]))


def test_processes_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OSError, match="nowhere"):
        Processes(1)
