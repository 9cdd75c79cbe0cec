"""Detects from options and environment whether this is one of several hosts; without jax."""

import importlib.util
import os

from llama_jax.config import InputError, require

Given = tuple[str | None, int | None, int | None]
"""Coordinator's address, number of processes and this one's number; None leaves a value to jax."""


def place(address: str | None, processes: int | None, process: int | None) -> Given | None:
    """This process's place among several, from the options or the variables
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or left for jax to detect; None
    for a single machine.

    Raises InputError if something is missing or impossible.
    """
    given = (
        address or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        _number("JAX_NUM_PROCESSES") if processes is None else processes,
        _number("JAX_PROCESS_ID") if process is None else process,
    )
    detected = _detected()
    if given[1] == 1 or (not detected and given == (None,) * 3):
        return None
    if not detected:
        _check(*given)
    return given


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    require(not text or text.isdigit(), f"{name}={text} must be a number")
    return int(text) if text else None


def _check(address: str | None, processes: int | None, process: int | None) -> None:
    if address is None or processes is None or process is None:
        raise InputError(
            "several hosts need all of --coordinator-address HOST:PORT, --num-processes and "
            f"--process-id (or JAX_COORDINATOR_ADDRESS, ...); given {address}, {processes} and "
            f"{process}"
        )
    port = address.rpartition(":")[2]
    require(port.isdigit(), f"--coordinator-address {address} must be HOST:PORT, of host 0")
    require(
        0 <= process < processes,
        f"--process-id {process} must lie between 0 and {processes - 1} (--num-processes)",
    )


def _detected() -> bool:
    """Whether jax will find out about several hosts by itself."""
    env = os.environ
    if env.get("JAX_PLATFORMS") != "cpu":
        workers = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")
        if "," in workers or (_number("MEGASCALE_NUM_SLICES") or 1) > 1:
            return True
        # Importing jax sets the variable on every machine without TPU chips. A Cloud TPU VM that
        # stands alone makes a program of one host.
        if importlib.util.find_spec("libtpu") and "TPU_SKIP_MDS_QUERY" not in env:
            return True
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in env for name in slurm) and (_number("SLURM_NTASKS") or 1) > 1:
        return True
    return (_number("OMPI_COMM_WORLD_SIZE") or 1) > 1
