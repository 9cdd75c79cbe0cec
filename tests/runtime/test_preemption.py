"""SIGTERM, sent by the operating system to real processes."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from llama_jax.runtime.preemption import Preemption

ONE = """
import sys, time
from llama_jax.runtime.preemption import Preemption
with Preemption() as preemption:
    for step in range(100_000):
        print(step, flush=True)
        if sys.argv[1] != "deaf" and preemption.reached(step):
            print("saved", step, flush=True)
            break
        time.sleep(0.01)
"""

MANY = """
import sys, time, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from llama_jax.runtime.preemption import Preemption
with Preemption() as preemption:
    for step in range(3000):
        print(step, flush=True)
        if preemption.reached(step):
            print("saved", step, flush=True)
            break
        time.sleep(0.01 * (1 + int(sys.argv[2])))  # one host is slower
"""


def start(program: str, *args: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", program, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XLA_FLAGS": ""},
    )


def wait_for(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    for printed in process.stdout:
        if printed == line + "\n":
            return
    raise AssertionError(f"ended without {line!r}: {process.communicate()[1]}")


def test_sigterm_asks_for_a_save():
    process = start(ONE, "listening")
    wait_for(process, "3")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[-1].startswith("saved")
    assert "SIGTERM: saving at step" in err


def test_a_second_sigterm_ends_the_process():
    process = start(ONE, "deaf")
    wait_for(process, "3")
    process.send_signal(signal.SIGTERM)
    wait_for(process, "20")  # still running
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    process.communicate()


def test_the_handler_before_is_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.reached(2)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_all_hosts_save_at_one_step():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [start(MANY, address, str(i)) for i in range(2)]
    for host in hosts:
        wait_for(host, "5")
    hosts[1].send_signal(signal.SIGTERM)
    outputs = [host.communicate(timeout=120) for host in hosts]
    last = [out.splitlines()[-1] for out, _ in outputs]
    assert last[0].startswith("saved"), outputs
    assert last[0] == last[1]
    assert [host.returncode for host in hosts] == [0, 0]
