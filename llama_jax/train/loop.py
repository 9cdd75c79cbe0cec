"""The training loop of every stage: from an experiment to a run folder, in chapters.

    hosts - source - mesh - folder - data - state - compile - steps

The same call resumes: everything follows from the experiment and the newest checkpoint that
verifies, so a killed and resumed run produces byte-identical checkpoints, unless these hold the
weights alone.
"""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from llama_jax.checkpoint import Checkpointer, saved_steps
from llama_jax.config import InputError, TrainConfig, adapted, require
from llama_jax.data.loader import Loader
from llama_jax.data.prepare import Mixture
from llama_jax.data.tokenizer import MODEL_FILE, Tokenizer
from llama_jax.models import Opened, base_pointer, weights_identity
from llama_jax.parallel.arrays import check_batch, host_rows, shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.runtime.compilation_cache import keep_programs
from llama_jax.runtime.console import waiting
from llama_jax.runtime.hosts import broadcast_from_main, fail_together, require_agreement
from llama_jax.runtime.preemption import Preemption
from llama_jax.train.hooks import Evaluator, Profiler
from llama_jax.train.initial import open_source, source_params
from llama_jax.train.metrics import Clock
from llama_jax.train.optimizer import learning_rate, make_optimizer
from llama_jax.train.report import Reporter
from llama_jax.train.run import check_run, claim_run, host_facts, run_path, write_run
from llama_jax.train.stage import Ask, Stage
from llama_jax.train.state import (
    abstract_state,
    saved_part,
    sharded_init,
    trained_table,
    with_saved,
)
from llama_jax.train.step import abstract_batch, jit_train_step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """The outcome of a call of `run`."""

    workdir: str
    step: int
    """Updates in the newest checkpoint."""
    steps: int
    """Updates that the experiment asks for."""
    resumed_from: int
    """Step at which this call began."""
    loss: float | None
    """Training loss of the last step of this call; None if it made none."""
    evaluation: dict[str, float] | None
    """Results of the last evaluation of this call."""
    seconds: dict[str, float]
    """Wall time of this call by purpose."""
    goodput: float
    """Share of it that was spent on training steps."""
    picture: str | None
    """The loss curve."""
    samples: str | None
    """The newest samples."""

    @property
    def finished(self) -> bool:
        """Whether all steps are made; False where SIGTERM came first."""
        return self.step == self.steps

    def lines(self) -> list[str]:
        """The summary for people."""
        state = "complete" if self.finished else "stopped early; the same command resumes"
        if self.resumed_from == self.steps:
            state = "was complete already; a larger --steps takes it further"
        lines = [f"step {self.step} of {self.steps}: {state}"]
        if self.loss is not None:
            lines.append(f"  training loss    {self.loss:.4f} nats")
        if self.evaluation is not None:
            said = [f"{k.replace('_', ' ')} {v:.4f}" for k, v in self.evaluation.items()]
            lines.append(f"  validation       {', '.join(said)}")
        seconds, share = sum(self.seconds.values()), 100 * self.goodput
        return [*lines, f"  time             {seconds:.0f} s, {share:.0f} % in steps"]


def run[C: TrainConfig](
    config: C, make_stage: Callable[[C], Stage], ask: Ask | None = None
) -> Summary:
    """Train or resume `config`; ends when all steps are made, or early (and cleanly) on SIGTERM.

    `make_stage` describes data and objective; it gets the experiment with the shape and function of
    the model that it starts from, where it asks for them. `ask` puts `eval_tasks` to the model at
    each evaluation, see `evals.in_training`.

    Raises:
      InputError: the settings, the corpus, the tokenizer or the folder do not fit.
      TrainingError: too many non-finite updates in a row.
      CheckpointError: a checkpoint could not be written, or none of several could be read.
    """
    require(
        ask or not config.eval_tasks,
        "eval_tasks are evaluated by llama-jax train, sft and dpo; in Python, pass "
        "ask=llama_jax.evals.in_training.asker(config)",
    )
    clock = Clock()
    # ---- Hosts: those that would run another program are named now, not when all hang.
    require_agreement(host_facts(config))

    # ---- Source: weights that do not fit the experiment are refused before anything is read.
    with fail_together():
        workdir = run_path(config)
        resumes = broadcast_from_main(bool(saved_steps(workdir / "checkpoints")))
        # Adapters are saved without the model that they belong to.
        resumes = resumes and not config.lora.rank
        config, source = open_source(config, workdir, resumes=resumes)
        stage = make_stage(adapted(config))

    # ---- Mesh: what cannot be split is refused before anything is read or allocated.
    objective, mesh = stage.objective, make_mesh(config.mesh)
    check_batch(config.batch_size, config.seq_len, config.accumulate, mesh)
    tx = make_optimizer(config.optimizer, trained_table(objective), config.updates)
    abstract = abstract_state(objective, tx, mesh)
    # So is an attention that was named and cannot be used here: tracing a step finds that out.
    with clock("compile"), fail_together(), jax.set_mesh(mesh):
        step_of = jit_train_step(config, objective, tx, abstract)
        traced = step_of.trace(abstract, abstract_batch(config, objective, mesh))

    # ---- Folder
    with fail_together():
        workdir = check_run(config)
    keep_programs(config.compilation_cache)

    with contextlib.ExitStack() as stack, jax.set_mesh(mesh):
        with fail_together():
            stack.enter_context(claim_run(workdir))

        # ---- Data
        with clock("data"):
            with fail_together():
                tokenizer = find_tokenizer(config, workdir, source, stage.new_tokenizer)
                stage.check(tokenizer)
                data = stage.prepare(tokenizer)
                own = stage.identity()
            identity = {
                "data": data["train"].fingerprint,
                "tokenizer": tokenizer.fingerprint,
                **own,
            }
            pointer = {}
            if config.lora.rank:
                assert source is not None, "TrainConfig requires init_from"
                with fail_together():
                    identity["base"] = weights_identity(source)
                    pointer = base_pointer(source, workdir)
            require_agreement(identity)
            with fail_together():
                # Last: bad input leaves no folder behind.
                write_run(config, workdir, tokenizer, source, stage.template)
            loader = _loader(config, data["train"], mesh, stack, shuffle=True)
            held_out = data.get("validation")
            validation = None
            if held_out is not None:
                validation = _loader(config, held_out, mesh, stack, shuffle=False)

        # ---- State: the newest checkpoint that verifies, or the beginning.
        keep, keep_every = config.checkpoint.keep, config.checkpoint.keep_every
        checkpoints = stack.enter_context(
            Checkpointer(workdir / "checkpoints", keep=keep, keep_every=keep_every)
        )
        with clock("restore"):
            weights_only = config.checkpoint.weights_only
            saved = saved_part(abstract, objective, weights_only=weights_only)
            state, start = restore(checkpoints, saved, identity, workdir)
            if state is None or weights_only or config.lora.rank:
                begun, params = state, abstract.params
                if source is not None:
                    params = source_params(source, params, objective.model)
                state = sharded_init(config.seed, objective, tx, abstract, params)
                if begun is not None:
                    state = with_saved(state, begun, weights_only=weights_only)
                    if weights_only and start < config.steps:
                        logger.warning(
                            "checkpoint.weights_only: the optimizer's moments restart at step "
                            "%d", start
                        )  # fmt: skip

        # ---- Compile
        with clock("compile"), fail_together(), waiting("compiling the step"):
            step: Any = traced.lower().compile() if start < config.steps else None

        # ---- Steps
        schedule = learning_rate(config.optimizer, config.steps)
        report = stack.enter_context(Reporter(config, workdir, clock, schedule, start))
        examine = Evaluator(config, stage, workdir, mesh, tokenizer, validation, report, ask)
        preemption = stack.enter_context(Preemption())
        profiler = Profiler(config.profile_steps, workdir, report.settle)
        stack.enter_context(profiler)
        batches = stack.enter_context(loader.iterate(start))
        examine.catch_up(start, state)
        done = start
        while done < config.steps:
            profiler.before(done + 1)
            with clock("data_wait"):
                batch = shard_batch(next(batches), mesh, config.batch_size)
            with clock("step"):
                state, metrics = step(state, batch)
                report.take(done + 1, metrics, loader.batch_ids(done))
            done += 1
            stop = preemption.reached(done)
            if not stop and examine.due(done):
                examine(done, state)
            if stop or done % config.checkpoint.every == 0 or done == config.steps:
                # The lines of metrics up to a checkpoint are durable before it is.
                report.sync()
                with report.aside("checkpoint"):
                    saved = saved_part(state, objective, weights_only=weights_only)
                    checkpoints.save(done, saved, identity | pointer)
                    del saved  # a copy, where it is smaller than the state
            if stop:
                break
        with report.aside("checkpoint"):
            checkpoints.wait()
        picture, samples = workdir / "loss.svg", sorted((workdir / "samples").glob("*.txt"))
        return Summary(
            workdir=str(workdir),
            step=done,
            steps=config.steps,
            resumed_from=start,
            loss=report.loss,
            evaluation=examine.results,
            seconds=dict(clock.seconds),
            goodput=clock.goodput(),
            picture=str(picture) if picture.exists() else None,
            samples=str(samples[-1]) if samples else None,
        )


def find_tokenizer(
    config: TrainConfig,
    workdir: epath.Path,
    source: Opened | None,
    new_tokenizer: Callable[[], Tokenizer] | None = None,
) -> Tokenizer:
    """The run's own copy if it has one; else the named one, that of the source, or a new one.

    Raises InputError if there is none, if it does not fit the model, or if the named one is not the
    one that the source's weights were trained with.
    """
    if (workdir / MODEL_FILE).exists():
        return Tokenizer.load(workdir)
    model, named = config.model, config.data.tokenizer
    own = None if source is None else source.tokenizer
    tokenizer = own if named is None else Tokenizer.load(named)
    if tokenizer is None:
        if new_tokenizer is None:
            raise InputError(
                "there is no tokenizer: start from a model that has one (--init-from), or name one "
                "with --data.tokenizer"
            )
        return new_tokenizer()
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"data.tokenizer {named} is not the tokenizer of init_from {config.init_from} "
            f"(fingerprints {tokenizer.fingerprint[:12]} and {own.fingerprint[:12]}): its weights "
            "were trained on other ids; leave --data.tokenizer out"
        )
    require(
        tokenizer.vocab_size <= model.vocab_size,
        f"the tokenizer has {tokenizer.vocab_size} tokens but model.vocab_size="
        f"{model.vocab_size}; set --model.vocab-size {tokenizer.vocab_size}",
    )
    return tokenizer


def _loader(
    config: TrainConfig, mixture: Mixture, mesh: Mesh, stack: contextlib.ExitStack, *, shuffle: bool
) -> Loader:
    loader = Loader(
        mixture,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=shuffle,
        rows=host_rows(mesh, config.batch_size),
    )
    stack.callback(loader.close)
    return loader


def restore[State](
    checkpoints: Checkpointer, abstract: State, identity: dict[str, str], workdir: epath.Path
) -> tuple[State | None, int]:
    """The newest checkpoint that verifies, laid out as `abstract`, and its step; None and 0 if the
    run has none.

    Raises:
      InputError: it was made from other data, or differs in another digest of `identity`.
      CheckpointError: no checkpoint can be read.
    """
    if not broadcast_from_main(bool(checkpoints.steps())):
        return None, 0
    restored = checkpoints.restore(abstract)
    for name, value in identity.items():
        if restored.extra.get(name) != value:
            raise InputError(
                f"{workdir} was trained on another {name} (fingerprint "
                f"{str(restored.extra.get(name))[:12]}, now {value[:12]}): use another --workdir"
            )
    logger.info("resumed %s at step %d", workdir, restored.step)
    return restored.tree, restored.step
