"""Joins the hosts of a pod into one program, and checks that all run the same one.

Hosts that run different programs hang silently in their first collective. So what they run is
compared first, through the key-value store of the coordination service, which needs no device.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import jax

from llama_jax.config import InputError, require
from llama_jax.runtime import cluster
from llama_jax.runtime.rendezvous import MEETING_SECONDS, Place, announced

logger = logging.getLogger(__name__)
HEARTBEAT_SECONDS = 100
"""A host that is silent for this long counts as dead, and the others end too: the default of
jax."""
# Longer than any preparation of data: hosts that wait for one another are freed by heartbeats.
_PATIENCE_MS = 7 * 24 * 3600 * 1000
_exchanges = count()


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
) -> None:
    """Start `jax.distributed` if there are several hosts; do nothing on a single machine.

    In this order: the arguments, or the variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID; GKE (TPU_WORKER_HOSTNAMES, MEGASCALE_*); a Cloud TPU VM (its metadata server);
    Slurm; Open MPI. All but the first are detected by jax. One process counts as a single machine,
    whatever else is set. Hosts other than 0 log warnings only.

    Raises:
      InputError: one of the three values is missing or impossible.
      ConnectionError: the hosts did not find each other.
    """
    given = cluster.place(coordinator_address, num_processes, process_id)
    if given is None:
        return
    try:
        with announced(_place, num_processes):
            jax.distributed.initialize(
                *given,
                # The watch ends first, and in one line.
                initialization_timeout=round(MEETING_SECONDS) + 60,
                heartbeat_timeout_seconds=heartbeat_seconds,
                shutdown_timeout_seconds=heartbeat_seconds,
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise ConnectionError(
            f"the hosts did not find each other ({error}); for a TPU machine by itself set "
            "TPU_SKIP_MDS_QUERY=1"
        ) from error
    logger.info("host %d of %d", jax.process_index(), jax.process_count())
    if jax.process_index():
        logging.getLogger().setLevel(logging.WARNING)


def _place() -> Place | None:
    """Where the hosts meet, as soon as jax knows it."""
    from jax._src.distributed import global_state  # there is no public door

    address, count = global_state.coordinator_address, global_state.num_processes
    return None if address is None or count == 1 else (address, global_state.process_id, count)


def is_main() -> bool:
    """Whether this is host 0, the one that writes logs, metrics and manifests."""
    return jax.process_index() == 0


def exchange(value: str) -> list[str]:
    """The values that all hosts passed to the same call, in order of the hosts. It waits for all of
    them.

    Raises ConnectionError if a host is lost meanwhile.
    """
    if not jax.distributed.is_initialized():
        return [value]
    from jax._src.distributed import global_state  # there is no public door to the store

    client: Any = global_state.client
    folder = f"llama_jax/exchange/{next(_exchanges)}"
    try:
        client.key_value_set(f"{folder}/{jax.process_index():08d}", value)
        client.wait_at_barrier(folder, _PATIENCE_MS)
        return [value for _, value in sorted(client.key_value_dir_get(folder))]
    except RuntimeError as error:
        raise ConnectionError(f"another host is lost: {str(error).splitlines()[0]}") from error


def broadcast_from_main(holds: bool) -> bool:
    """Host 0's answer, on every host: hosts may see a network file system in different states, and
    must act alike nevertheless."""
    return exchange(json.dumps(holds))[0] == json.dumps(True)


def require_agreement(facts: Mapping[str, object]) -> None:
    """Raise InputError unless all hosts pass the same facts.

    It is raised on every host and names each fact that differs, and where.
    """
    hosts = [json.loads(text) for text in exchange(json.dumps(facts, default=str))]
    problems = []
    for name in dict.fromkeys(name for host in hosts for name in host):
        said: dict[str, list[int]] = {}
        for index, host in enumerate(hosts):
            said.setdefault(json.dumps(host.get(name)), []).append(index)
        if len(said) > 1:
            sides = (f"{value} on {_hosts(where)}" for value, where in said.items())
            problems.append(f"{name} is {' and '.join(sides)}")
    require(
        not problems,
        f"the hosts disagree: {'; '.join(problems)}. Start all of them with one command, one "
        "version and one environment",
    )


def _hosts(indices: list[int]) -> str:
    shown = ", ".join(map(str, indices[:4])) + (", ..." if len(indices) > 4 else "")
    return f"host{'s' if len(indices) > 1 else ''} {shown}"


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Leave the block on all hosts or on none: an exception on one of them ends all of them.

    On hosts without an error of their own it raises InputError for an InputError of another host,
    and ConnectionError for any other exception.
    """
    try:
        yield
    except Exception as error:
        exchange(f"{type(error).__name__}: {error}")
        raise
    for index, problem in enumerate(exchange("")):
        if problem:
            kind, _, reason = problem.partition(": ")
            refused = InputError if kind == "InputError" else ConnectionError
            raise refused(f"host {index}: {reason}")


def leave(status: int) -> None:
    """End the process of a host that failed by itself; do nothing on a single machine.

    An orderly shutdown would wait for the other hosts, which wait for this one. Without it, they
    are freed once its heartbeat is missed.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
