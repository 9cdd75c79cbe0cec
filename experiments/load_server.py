"""Many clients of `llama-jax serve` for minutes: each answer checked, times and memory printed.

Command   python experiments/load_server.py MODEL --clients 200 --seconds 300
Hardware  any; the server and its clients share it, and talk over 127.0.0.1
Expected  the seconds, and half a minute around them; LOG.md has figures

The server starts with a queue that is too short for all clients, so that many are told to come
back. Clients ask for streams of a few requests, which the server has answered one by one before:
text and log-probabilities must be the lone ones, bit for bit. One in twenty leaves in the middle.
`/health` is asked ten times a second, by a connection of its own.

The status is 1 if an answer was another's or none, the server had another status than 200 and 429,
kept a row or a page, compiled anything, or ended otherwise than it should, or if its memory grew by
more than `--growth` after the first tenth of the time.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout, TCPConnector

PROMPTS = ["Once upon a time", "The cat", "", "One day a boy went to the park and saw a dog"]
KINDS, LEAVING = 12, 0.05
ANSWER_SECONDS, END_SECONDS = 300.0, 60.0
PATH = "/v1/completions"


@dataclass
class Seen:
    """What the clients saw, in seconds where it is time."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    resident: list[tuple[float, int]] = field(default_factory=list)
    """Moments since the load began, and bytes of the server then."""
    tokens: int = 0
    left: int = 0


def requests_of(name: str, new: int) -> list[dict[str, Any]]:
    """The requests that clients choose from: greedy and drawn, one answer and three."""
    chance = random.Random(0)
    return [
        {"model": name, "prompt": PROMPTS[n % len(PROMPTS)], "seed": n, "logprobs": 2,
         "max_tokens": chance.randint(1, new), "temperature": (0, 0.8)[n % 2],
         "n": (1, 1, 3)[n % 3], "ignore_eos": True}
        for n in range(KINDS)
    ]  # fmt: skip


@contextlib.contextmanager
def serving(args: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port, and its address."""
    command = [sys.executable, "-m", "llama_jax", "serve", args.model, "--port", "0",
               "--queue", str(args.queue), "--rows", str(args.rows)]  # fmt: skip
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            if not url:
                log.seek(0)
                raise SystemExit(f"the server did not start: {log.read()[-2000:]}")
            yield process, url
        finally:
            process.kill()


async def events(session: ClientSession, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
    """The events of a stream. Raises Refused for a status that is not 200."""
    async with session.post(PATH, json={**body, "stream": True}) as response:
        if response.status != 200:
            raise Refused(response.status, float(response.headers.get("Retry-After", 1)))
        ended = False
        async for line in response.content:
            said = line.decode().removeprefix("data: ").strip()
            if said == "[DONE]":
                ended = True
            elif said and not said.startswith(":"):
                yield json.loads(said)
        if not ended:
            raise ValueError("the stream ended without [DONE]")


class Refused(Exception):
    """A status that is not 200, and the seconds until another try."""

    def __init__(self, status: int, seconds: float):
        super().__init__(f"status {status}")
        self.status, self.seconds = status, seconds


Answer = dict[int, tuple[str, list[float], str | None]]
"""Of each choice its text, log-probabilities, and how it ended."""


def added(answer: Answer, choice: dict[str, Any]) -> int:
    """Put a choice of an answer, or a part of it, to what is known; the tokens that it has."""
    text, scores, finish = answer.get(choice["index"], ("", [], None))
    new = (choice["logprobs"] or {}).get("token_logprobs", [])
    answer[choice["index"]] = text + choice["text"], scores + new, choice["finish_reason"] or finish
    return len(new)


async def ask(session: ClientSession, body: dict[str, Any], seen: Seen, *, leave: bool) -> Answer:
    """One streamed answer, with its times."""
    answer: Answer = {}
    begun, before = time.perf_counter(), {}
    async with contextlib.aclosing(events(session, body)) as news:
        async for event in news:
            for choice in event["choices"]:
                tokens, now = added(answer, choice), time.perf_counter()
                if not tokens:
                    continue
                if choice["index"] in before:
                    seen.between.append((now - before[choice["index"]]) / tokens)
                else:
                    seen.first.append(now - begun)
                before[choice["index"]] = now
                seen.tokens += tokens
            if leave:
                break
    return answer


async def client(
    number: int, session: ClientSession, bodies: list[dict], alone: list[Answer], seen: Seen,
    until: float,
) -> None:  # fmt: skip
    """Requests of one client, one after another."""
    mine = random.Random(number)
    while time.monotonic() < until:
        which, leave = mine.randrange(len(bodies)), mine.random() < LEAVING
        try:
            answer = await ask(session, bodies[which], seen, leave=leave)
        except Refused as refused:
            seen.statuses[refused.status] += 1
            await asyncio.sleep(refused.seconds * mine.uniform(0.5, 1))
            continue
        except Exception as error:
            seen.problems.append(f"request {which}: {error!r}")
            continue
        seen.statuses[200] += 1
        seen.left += leave
        if not leave and answer != alone[which]:
            seen.problems.append(f"request {which}: {answer} is not {alone[which]}")


async def watch(session: ClientSession, pid: int, seen: Seen, until: float) -> None:
    """The time of `/health` ten times a second, and the server's memory once."""
    begun = time.monotonic()
    for turn in itertools.count():
        if time.monotonic() > until:
            return
        asked = time.perf_counter()
        async with session.get("/health") as response:
            if response.status != 200:
                seen.problems.append(f"/health: {response.status}")
        seen.health.append(time.perf_counter() - asked)
        if turn % 10 == 0:
            seen.resident.append((time.monotonic() - begun, memory(pid, "VmRSS")))
        await asyncio.sleep(0.1)


def memory(pid: int, name: str) -> int:
    """Bytes that Linux counts for a process: VmRSS now, VmHWM at the most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith(name)
    )


async def load(args: argparse.Namespace, url: str, pid: int) -> Seen:
    """The lone answers, then all clients at once, then what is left behind."""
    limit = ClientTimeout(total=ANSWER_SECONDS)
    seen = Seen()
    async with (
        ClientSession(url, connector=TCPConnector(limit=0), timeout=limit) as session,
        ClientSession(url, timeout=limit) as watcher,
    ):
        async with session.get("/v1/models") as response:
            name = (await response.json())["data"][0]["id"]
        bodies = requests_of(name, args.new)
        alone: list[Answer] = []
        for body in bodies:
            async with session.post(PATH, json=body) as response:
                response.raise_for_status()
                whole: Answer = {}
                for choice in (await response.json())["choices"]:
                    added(whole, choice)
                alone.append(whole)
        until = time.monotonic() + args.seconds
        clients = [client(n, session, bodies, alone, seen, until) for n in range(args.clients)]
        await asyncio.gather(watch(watcher, pid, seen, until), *clients)
        seen.problems += await left_behind(watcher)
    return seen


async def left_behind(session: ClientSession) -> list[str]:
    """What `/metrics` says of a server that should have nothing to do."""
    wanted = {"num_requests_running": 0.0, "num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.0,
              "compilations_after_warmup_total": 0.0}  # fmt: skip
    until = time.monotonic() + END_SECONDS
    while True:
        async with session.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        split = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        found = {name.partition("{")[0].partition(":")[2]: float(value) for name, value in split}
        other = [f"{name} is {found.get(name)}" for name in wanted if found.get(name) != 0]
        if not other or time.monotonic() > until:
            return other
        await asyncio.sleep(0.1)


def table(args: argparse.Namespace, seen: Seen, peak: int) -> list[str]:
    """What is printed."""
    last = seen.resident[-1][1]
    first = next((size for moment, size in seen.resident if moment >= args.seconds / 10), last)
    if last > (1 + args.growth) * first:
        seen.problems.append(f"memory grew from {first} to {last} bytes")

    def times(name: str, values: list[float]) -> str:
        if len(values) < 2:
            return f"{name:<24}too few"
        parts = statistics.quantiles(values, n=100)
        return f"{name:<24}p50 {1e3 * parts[49]:9.1f} ms   p99 {1e3 * parts[98]:9.1f} ms"

    statuses = ", ".join(
        f"{count:,} of {status}" for status, count in sorted(seen.statuses.items())
    )
    return [
        f"{'clients':<24}{args.clients} for {args.seconds:g} s; {args.rows} rows, "
        f"queue {args.queue}",
        f"{'answers':<24}{statuses}; {seen.left:,} were left by their clients",
        f"{'tokens':<24}{seen.tokens:,}, {seen.tokens / args.seconds:,.0f} a second",
        times("first token", seen.first),
        times("between tokens", seen.between),
        times("/health", seen.health),
        f"{'memory':<24}{first / 1e6:,.1f} MB, then {last / 1e6:,.1f} MB "
        f"({100 * (last / first - 1):+.2f} %), at most {peak / 1e6:,.1f} MB",
    ]


def main() -> int:
    """Print the table, and what was wrong."""
    about = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("model", help="what `llama-jax serve` takes")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--queue", type=int, default=16, help="answers that may wait")
    parser.add_argument("--rows", type=int, default=8, help="answers that are drawn together")
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer at most")
    parser.add_argument("--growth", type=float, default=0.02, help="of memory, as a share")
    args = parser.parse_args()
    if not Path("/proc/self/status").exists():
        raise SystemExit("the server's memory is read from /proc: run this on Linux")
    with serving(args) as (process, url):
        seen = asyncio.run(load(args, url, process.pid))
        peak = memory(process.pid, "VmHWM")
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        if process.returncode != 0:
            seen.problems.append(f"the server ended with {process.returncode}")
    if set(seen.statuses) - {200, 429}:
        seen.problems.append(f"statuses {dict(seen.statuses)}")
    print("\n".join(table(args, seen, peak)))
    for problem in seen.problems[:20]:
        print(problem, file=sys.stderr)
    return 1 if seen.problems else 0


if __name__ == "__main__":
    sys.exit(main())
