"""Our server and llama.cpp's on one model: tokens a second over HTTP, memory and start, in turn.

Command   python experiments/compare_server.py --tokenizer tokenizer.model \\
              --llama-python OTHER/bin/python
Hardware  a quiet machine; a server has all its cores while it answers, and its clients share them
Expected  ten minutes on two CPU cores; LOG.md has figures

A Llama of `--preset` with random weights is written once as our folder, quantised to int8, and
converted to GGUF in F32 and Q8_0. The two servers of a pair run at the same time, and answer waves
in turn: A B A B. A wave is 1, 4 or 16 requests at once to /v1/completions, each a prompt of 64
random token ids and 128 greedy tokens, EOS ignored, not streamed. Its speed is all new tokens over
its time, prefill and HTTP included. A ratio above 1 means that ours is faster.

`--llama-python` names an interpreter that has xllamacpp, which is llama.cpp's server as a package;
without it ours stands alone. The start is the second of ours, with what the first one compiled; a
file that it adds to the compiled programs is a program that was not found there.
"""

import argparse
import concurrent.futures
import contextlib
import http.client
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama_jax.model.presets import PRESETS

PROMPT, NEW, STREAMS = 64, 128, (1, 4, 16)
PAIRS = {"float32": "F32", "int8": "Q8_0"}
"""Our weights, and llama.cpp's to compare them with."""
START_SECONDS = ANSWER_SECONDS = 600.0
# As the server's own defaults are, but for the sizes.
LLAMA_CPP = """
import json, sys, time, xllamacpp
wanted = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = wanted["model"]
params.n_parallel, params.n_ctx = wanted["rows"], wanted["rows"] * wanted["context"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = wanted["threads"]
params.port, params.hostnames, params.ui = 0, ["127.0.0.1"], False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e9)
"""


class Server:
    """A server as a process, and what it took to start."""

    def __init__(self, command: list[str], folder: Path):
        begun = time.perf_counter()
        self.log = folder / "server.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
                env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
                                  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            )  # fmt: skip
        try:
            self.address = self._address()
            self._wait(begun + START_SECONDS)
        except BaseException:
            self.close()
            raise
        self.start_seconds = time.perf_counter() - begun
        self.name = json.loads(self.ask("GET", "/v1/models")[1])["data"][0]["id"]

    def _address(self) -> str:
        """HOST:PORT, which a line of its own says; what else is printed is not asked for."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("http://"):
                return line.strip().removeprefix("http://")
        raise SystemExit(f"a server did not start: {self.log.read_text()[-2000:]}")

    def _wait(self, until: float) -> None:
        while time.perf_counter() < until:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/health")[0] == 200:
                    return
            time.sleep(0.02)
        raise SystemExit(f"a server was not ready: {self.log.read_text()[-2000:]}")

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, bytes]:
        """Status and body of one request."""
        connection = http.client.HTTPConnection(self.address, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()

    def complete(self, prompt: list[int]) -> None:
        """One answer. SystemExit unless it has all its tokens."""
        body = {"model": self.name, "prompt": prompt, "max_tokens": NEW, "temperature": 0,
                "ignore_eos": True}  # fmt: skip
        status, said = self.ask("POST", "/v1/completions", body)
        if status != 200 or json.loads(said)["usage"]["completion_tokens"] != NEW:
            raise SystemExit(f"{self.address} answered {status}: {said[:500]!r}")

    def wave(self, prompts: list[list[int]]) -> float:
        """Tokens a second of as many requests at once."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            begun = time.perf_counter()
            list(pool.map(self.complete, prompts))
            return len(prompts) * NEW / (time.perf_counter() - begun)

    @property
    def peak_bytes(self) -> int:
        """The most memory that it has had; Linux alone says so."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def write_models(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """The model in the four forms, by their names."""
    write = (
        "import sys, jax; from llama_jax.checkpoint import save_model; "
        "from llama_jax.config_file import model_json; from llama_jax.model.llama import "
        "init_params; from llama_jax.model.presets import PRESETS; config = PRESETS[sys.argv[1]]; "
        "save_model(sys.argv[3], init_params(jax.random.key(0), config), model_json(config), "
        "open(sys.argv[2], 'rb').read(), {})"
    )
    paths = {"float32": folder / "float32", "int8": folder / "int8",
             "F32": folder / "f32.gguf", "Q8_0": folder / "q8_0.gguf"}  # fmt: skip
    python, ours = [sys.executable, "-c", write], [sys.executable, "-m", "llama_jax"]
    whole = str(paths["float32"])
    for command in (
        [*python, args.preset, args.tokenizer, whole],
        [*ours, "quantize", whole, str(paths["int8"]), "--weights", "int8"],
        [*ours, "convert", whole, str(paths["F32"]), "--to", "gguf"],
        [*ours, "convert", whole, str(paths["Q8_0"]), "--to", "gguf:q8_0"],
    ):
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}  # no look for a TPU
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return paths


def ours(model: Path) -> list[str]:
    """The command of our server."""
    return [sys.executable, "-m", "llama_jax", "serve", str(model), "--port", "0",
            "--rows", str(max(STREAMS))]  # fmt: skip


def llama_cpp(python: str, model: Path, context: int) -> list[str]:
    """The command of llama.cpp's server, with as many rows of this context."""
    wanted = {"model": str(model), "rows": max(STREAMS), "context": context,
              "threads": len(os.sched_getaffinity(0))}  # fmt: skip
    return [python, "-c", LLAMA_CPP, json.dumps(wanted)]


def prompts_of(number: int, streams: int, vocab_size: int) -> list[list[int]]:
    """Prompts that no wave before had: no server finds them in its cache."""
    chance = random.Random(f"{number} of {streams}")
    return [[1, *chance.choices(range(3, vocab_size), k=PROMPT - 1)] for _ in range(streams)]


@contextlib.contextmanager
def running(commands: dict[str, list[str]], folder: Path) -> Iterator[dict[str, Server]]:
    """The servers of a pair."""
    with contextlib.ExitStack() as ending:
        servers = {}
        for side, command in commands.items():
            place = folder / side
            place.mkdir(exist_ok=True)
            servers[side] = Server(command, place)
            ending.callback(servers[side].close)
        yield servers


def compare(weights: str, args: argparse.Namespace, paths: dict[str, Path], folder: Path) -> None:
    """Print the rows of one pair."""
    config = PRESETS[args.preset]
    commands = {weights: ours(paths[weights])}
    if args.llama_python:
        other = PAIRS[weights]
        commands[other] = llama_cpp(args.llama_python, paths[other], config.max_seq_len)
    programs = folder / weights / "programs"
    with running({weights: commands[weights]}, folder) as first:
        first_start = first[weights].start_seconds
    kept = len(list(programs.iterdir()))
    with running(commands, folder) as servers:
        for streams in STREAMS:
            speeds: dict[str, list[float]] = {side: [] for side in servers}
            for number in range(1 + args.waves):
                prompts = prompts_of(number, streams, config.vocab_size)
                for side, server in servers.items():
                    speeds[side].append(server.wave(prompts))
            medians = {side: statistics.median(found[1:]) for side, found in speeds.items()}
            row = "   ".join(f"{side} {speed:8.1f}" for side, speed in medians.items())
            if len(medians) > 1:
                row += f"   ratio {medians[weights] / medians[PAIRS[weights]]:.2f}"
            print(f"{streams:>2} streams, tokens/s   {row}", flush=True)
        for side, server in servers.items():
            print(f"{side:<8} peak {server.peak_bytes / 1e9:.2f} GB, "
                  f"start {server.start_seconds:.1f} s", flush=True)  # fmt: skip
        new = len(list(programs.iterdir())) - kept
        print(f"{weights:<8} first start {first_start:.1f} s, {kept} programs; "
              f"{new} more in the second", flush=True)  # fmt: skip


def main() -> None:
    """Print the tables."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--tokenizer", required=True, help="tokenizer.model of as many tokens")
    parser.add_argument("--llama-python", help="interpreter that has xllamacpp")
    parser.add_argument("--preset", choices=PRESETS, default="stories-15m")
    parser.add_argument("--waves", type=int, default=3, help="that count, after one that does not")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write_models(args, folder)
        for weights in PAIRS:
            compare(weights, args, paths, folder)


if __name__ == "__main__":
    main()
