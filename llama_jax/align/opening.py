"""Shared start-up of the stages that sample answers: PPO, GRPO and rejection sampling."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from llama_jax.config import require
from llama_jax.config_align import RolloutConfig
from llama_jax.models import Opened
from llama_jax.parallel.arrays import check_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.runtime.compilation_cache import keep_programs
from llama_jax.runtime.hosts import fail_together, require_agreement
from llama_jax.train.initial import open_source
from llama_jax.train.run import check_run, claim_run, host_facts, run_path


class Opening[C: RolloutConfig](NamedTuple):
    """The experiment, folder, model source and mesh of a stage, before it reads any data."""

    config: C
    """The experiment, with the source's settings where it takes those."""
    workdir: epath.Path
    source: Opened
    mesh: Mesh


@contextlib.contextmanager
def opened_run[C: RolloutConfig](config: C, rows: int) -> Iterator[Opening[C]]:
    """Context in which the hosts have agreed, the mesh is set and the run folder is locked.

    As in pretraining, settings are checked before any data is read.

    rows: of an update.

    Raises InputError: settings, the source or the folder do not fit.
    """
    require(
        not config.eval_tasks,
        "eval_tasks are evaluated by llama-jax train, sft and dpo: evaluate this model "
        f"afterwards, with llama-jax eval {config.workdir} --tasks {','.join(config.eval_tasks)}",
    )
    require_agreement(host_facts(config))
    with fail_together():
        workdir = run_path(config)
        config, source = open_source(config, workdir, resumes=False)
        assert source is not None, "RolloutConfig requires init_from"
    mesh = make_mesh(config.mesh)
    check_batch(rows, config.seq_len, config.accumulate, mesh)
    with fail_together():
        check_run(config)
    keep_programs(config.compilation_cache)
    with contextlib.ExitStack() as stack, jax.set_mesh(mesh):
        with fail_together():
            stack.enter_context(claim_run(workdir))
        yield Opening(config, workdir, source, mesh)
