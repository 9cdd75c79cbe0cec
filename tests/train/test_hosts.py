"""Several hosts for real: processes on this machine that join over loopback, one `llama-jax train`.

The reduction over two devices is one addition, which is the same in any order: two hosts of one
device must write the bytes that one host of two devices writes. Over four devices the order of the
sum depends on who holds what, and the tolerance is that of float32 sums.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from llama_jax.runtime.hosts import HEARTBEAT_SECONDS
from tests.train.tiny import digests, facts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 60
OPTIONS = (
    "--steps", str(STEPS), "--checkpoint.every", "7", "--eval-every", "30", "--eval-batches", "2",
    "--sample-prompts", "One day",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def start(
    tiny, hosts: int, *options: str, heartbeat: int = 60, **of_host: dict
) -> list[subprocess.Popen]:
    """`llama-jax train` on so many hosts of one device; `host1=dict(...)` is for that one alone."""
    group = ("--coordinator-address", f"localhost:{free_port()}", "--num-processes", str(hosts))
    processes = []
    for i in range(hosts):
        own = {"options": (), **of_host.get(f"host{i}", {})}
        flags = (*options, *own.pop("options"), *group, "--process-id", str(i))
        processes.append(tiny.start(*flags, "--heartbeat-seconds", str(heartbeat), **own))
    return processes


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each."""
    try:
        said = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(processes, said, strict=True)]


def wait_for_step(run: Path, step: int, processes: list[subprocess.Popen]) -> None:
    while not (run / "metrics.jsonl").exists() or len(facts(run)) < step:
        time.sleep(0.01)
        assert all(process.poll() is None for process in processes), finish(processes)


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """The run of one host with two devices."""
    run = tmp_path_factory.mktemp("alone") / "run"
    status, _, err = tiny.run(*OPTIONS, "--workdir", str(run), devices=2)
    assert status == 0, err
    return run


def assert_close(run: Path, reference: Path) -> None:
    """The same batches, and losses that differ as float32 sums in another order do."""
    ours, theirs = facts(run), facts(reference)
    assert [m.get("data/batch") for m in ours] == [m.get("data/batch") for m in theirs]
    for name in ("train/loss", "eval/loss", "eval/bits_per_byte"):
        a, b = ([m[name] for m in lines if name in m] for lines in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=name)


def test_two_hosts_write_the_bytes_of_one(tiny, tmp_path, alone):
    run = tmp_path / "run"
    (first, second) = finish(start(tiny, 2, *OPTIONS, "--workdir", str(run)))
    assert (first[0], second[0]) == (0, 0), (first, second)
    assert facts(run) == facts(alone)
    assert digests(run, STEPS) == digests(alone, STEPS)
    name = f"samples/step-{STEPS:08d}.txt"
    assert (run / name).read_text() == (alone / name).read_text()
    # Host 0 speaks for all.
    assert f"step {STEPS} of {STEPS}: complete" in first[1]
    assert "Gloo" not in first[1] + second[1]  # results alone
    assert "step 60/60" in first[2]
    assert "step" not in second[1]
    assert "step" not in second[2]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_dies_ends_all_and_other_hosts_go_on(tiny, tmp_path, alone, victim):
    run = tmp_path / "run"
    options = (*OPTIONS, "--workdir", str(run))
    processes = start(tiny, 2, *options)
    wait_for_step(run, 20, processes)
    processes[victim].kill()
    results = finish(processes)
    assert results[victim][0] == -signal.SIGKILL
    assert results[1 - victim][0] not in (0, -signal.SIGKILL), results
    # Four hosts, of which two and two hold the same rows.
    results = finish(start(tiny, 4, *options, "--mesh.tensor", "2"))
    assert [status for status, _, _ in results] == [0] * 4, results
    assert f"resumed {run} at step" in results[0][2]
    assert_close(run, alone)


def test_a_host_that_freezes_ends_the_others_within_the_heartbeat(tiny, tmp_path):
    processes = start(tiny, 2, *OPTIONS, "--workdir", str(tmp_path / "run"), heartbeat=10)
    wait_for_step(tmp_path / "run", 10, processes)
    processes[1].send_signal(signal.SIGSTOP)
    try:
        processes[0].wait(timeout=HEARTBEAT_SECONDS / 2)  # well before the default would end it
    finally:
        processes[1].kill()
    assert finish(processes)[0][0] not in (0, -signal.SIGKILL)


def test_sigterm_to_one_saves_on_all(tiny, tmp_path, alone):
    run = tmp_path / "run"
    options = (*OPTIONS, "--workdir", str(run), "--checkpoint.every", "1000")
    processes = start(tiny, 2, *options)
    wait_for_step(run, 10, processes)
    processes[1].send_signal(signal.SIGTERM)
    results = finish(processes)
    assert [status for status, _, _ in results] == [0, 0], results
    (step,) = [int(path.name) for path in (run / "checkpoints").iterdir()]
    assert 10 <= step < STEPS
    assert f"step {step} of {STEPS}: stopped early; the same command resumes" in results[0][1]
    status, _, err = tiny.run(*options, devices=2)
    assert status == 0, err
    assert digests(run, STEPS) == digests(alone, STEPS)
    assert facts(run) == facts(alone)


OLDER = """\
import importlib.metadata, sys
version = importlib.metadata.version
importlib.metadata.version = lambda name: "0.1" if name == "flax" else version(name)
from llama_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def test_hosts_that_disagree_are_named_on_every_host(tiny, tmp_path):
    older = tmp_path / "older.py"
    older.write_text(OLDER)
    odd = {"options": ("--model.remat", "full"), "program": [str(older)]}
    results = finish(start(tiny, 3, "--workdir", str(tmp_path / "run"), host2=odd))
    for status, out, err in results:
        assert status == 2, err
        assert 'model.remat is "none" on hosts 0, 1 and "full" on host 2' in err
        assert 'the version of flax is "' in err
        assert '" on hosts 0, 1 and "0.1" on host 2' in err
        notices = [line for line in err.strip().splitlines() if not re.match(r"host \d of 3", line)]
        assert len(notices) == 1, err  # the reason
        assert "step" not in out
    assert not (tmp_path / "run").exists()


def test_what_is_wrong_on_one_host_ends_all(tiny, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("mine")
    script = tmp_path / "elsewhere.py"  # a host whose disk has something else at that path
    script.write_text(
        "import dataclasses, sys\n"
        "from llama_jax import cli\n"
        "from llama_jax.train import loop\n"
        "check = loop.check_run\n"
        f"loop.check_run = lambda c: check(dataclasses.replace(c, workdir={str(taken)!r}))\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    odd = {"program": [str(script)]}
    results = finish(start(tiny, 2, "--workdir", str(tmp_path / "run"), host1=odd))
    assert [status for status, _, _ in results] == [2, 2], results
    assert f"error: host 1: workdir {taken} is not empty" in results[0][2]
    assert f"error: workdir {taken} is not empty" in results[1][2]
    assert not (tmp_path / "run").exists()


JOIN = """
import os, sys, jax
jax.config.update("jax_platforms", "cpu")
if sys.argv[1] == "cloud tpu": del os.environ["TPU_SKIP_MDS_QUERY"]  # set where no chips are
from llama_jax.runtime import hosts
hosts.initialize()
print(jax.process_index(), jax.process_count(), *hosts.exchange(str(jax.process_index())))
"""


class Metadata(BaseHTTPRequestHandler):
    """What the metadata server of a Cloud TPU VM says to one worker."""

    worker = "0"

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        values = {
            "agent-worker-number": self.worker,
            "worker-network-endpoints": "localhost,localhost",
            "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\n",
        }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(values[name].encode())

    def log_message(self, *_):
        pass


def serve_metadata(worker: int) -> str:
    handler = type("Worker", (Metadata,), {"worker": str(worker)})
    server = HTTPServer(("localhost", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    return f"localhost:{server.server_address[1]}"


def environment(kind: str, i: int, port: int) -> dict[str, str]:
    """What tells process i of two that it is one of two."""
    as_tpu = {"JAX_FORCE_TPU_INIT": "1", "JAX_COORDINATOR_PORT": str(port)}
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "localhost", "NTASKS": "2", "PROCID": str(i)}
    return {
        "variables": {
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(i),
        },
        "gke": as_tpu | {"TPU_WORKER_HOSTNAMES": "localhost,localhost", "TPU_WORKER_ID": str(i)},
        "gke, two slices": as_tpu
        | {
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": str(i),
            "MEGASCALE_COORDINATOR_ADDRESS": "localhost:8081",
        },
        "cloud tpu": as_tpu,
        "slurm": {"JAX_COORDINATOR_PORT": str(port), "SLURM_LOCALID": "0"}
        | {f"SLURM_{name}": value for name, value in slurm.items()},
    }[kind]


@pytest.mark.parametrize("kind", ["variables", "gke", "gke, two slices", "cloud tpu", "slurm"])
def test_hosts_find_each_other(kind):
    port, processes = free_port(), []
    for i in range(2):
        own = environment(kind, i, port)
        if "JAX_FORCE_TPU_INIT" in own:
            own["GCE_METADATA_IP"] = serve_metadata(i)
        inherited = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", JOIN, kind],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=inherited | own,
            )
        )
    results = finish(processes)
    assert [(status, out.split()) for status, out, _ in results] == [
        (0, ["0", "2", "0", "1"]),
        (0, ["1", "2", "0", "1"]),
    ], results
