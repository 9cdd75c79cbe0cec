"""Joining the hosts of a pod into one program."""

import logging
import os

import jax

logger = logging.getLogger(__name__)
# Set by Cloud TPU VMs and GKE for every host of a pod; jax reads the rest from the metadata.
_POD_HOSTS = "TPU_WORKER_HOSTNAMES"


def initialize() -> None:
    """Start `jax.distributed` where the environment describes several hosts; else do nothing.

    Understood are what jax itself detects (Cloud TPU pods, GKE, Slurm, Open MPI) and the plain
    variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    env = os.environ
    if "JAX_COORDINATOR_ADDRESS" in env:
        jax.distributed.initialize(
            coordinator_address=env["JAX_COORDINATOR_ADDRESS"],
            num_processes=int(env["JAX_NUM_PROCESSES"]),
            process_id=int(env["JAX_PROCESS_ID"]),
        )
    elif "," in env.get(_POD_HOSTS, "") or int(env.get("SLURM_NTASKS", "1")) > 1:
        jax.distributed.initialize()
    else:
        return
    logger.info("process %d of %d", jax.process_index(), jax.process_count())
