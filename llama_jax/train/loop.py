"""Pretraining from an experiment to a run folder, in chapters.

    mesh - folder - data - state - compile - steps

The same call resumes: everything follows from the experiment and the newest checkpoint that
verifies, so a run that was killed and one that was not write the same bytes.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from llama_jax.checkpoint import Checkpointer, load_params
from llama_jax.config import InputError, TrainConfig
from llama_jax.data.loader import Loader
from llama_jax.data.prepare import Mixture, prepare, resolve_tokenizer
from llama_jax.data.tokenizer import MODEL_FILE, Tokenizer
from llama_jax.parallel.arrays import check_batch, host_rows, shard_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.runtime.hosts import agree, said_by_main, together
from llama_jax.runtime.preemption import Preemption
from llama_jax.train.evaluate import Evaluation, evaluate
from llama_jax.train.loss_curve import write_loss_curve
from llama_jax.train.metrics import METRICS_FILE, Clock, read_metrics
from llama_jax.train.optimizer import learning_rate, make_optimizer
from llama_jax.train.report import Reporter
from llama_jax.train.run import check_run, host_facts, open_run
from llama_jax.train.state import TrainState, abstract_state, sharded_init
from llama_jax.train.step import abstract_batch, jit_eval_step, jit_train_step
from llama_jax.train.uploads import Mirror

logger = logging.getLogger(__name__)
Sampler = Callable[[dict, Tokenizer, str], str]
"""(parameters, tokenizer, prompt) -> prompt and continuation."""


@dataclass(frozen=True)
class Summary:
    """How a call of `train` ended."""

    workdir: str
    step: int
    """Updates in the newest checkpoint."""
    steps: int
    """Updates that the experiment asks for."""
    resumed_from: int
    """Step at which this call began."""
    loss: float | None
    """Training loss of the last step of this call; None if it made none."""
    evaluation: Evaluation | None
    """Last evaluation of this call."""
    seconds: dict[str, float]
    """Wall time of this call by purpose."""
    goodput: float
    """Share of it that was spent on training steps."""
    picture: str | None
    """The loss curve."""
    samples: str | None
    """The newest samples."""


def train(config: TrainConfig, *, sample: Sampler | None = None) -> Summary:
    """Train or resume `config`; ends when all steps are made, or early (and cleanly) on SIGTERM.

    `sample` continues the experiment's prompts after each evaluation.

    Raises:
      InputError: the settings, the corpus, the tokenizer or the folder do not fit.
      TrainingError: too many non-finite updates in a row.
      CheckpointError: a checkpoint could not be written, or none of several could be read.
    """
    clock = Clock()
    # ---- Hosts: those that would run another program are named now, not when all hang.
    agree(host_facts(config))

    # ---- Mesh: what cannot be split is refused before anything is read or allocated.
    mesh = make_mesh(config.mesh)
    check_batch(config.batch_size, config.seq_len, config.accumulate, mesh)
    tx = make_optimizer(config.optimizer, config.model, config.steps)
    abstract = abstract_state(config.model, tx, mesh)
    # So is an attention that was named and cannot be used here: tracing a step finds that out.
    with clock("compile"), together(), jax.set_mesh(mesh):
        traced = jit_train_step(config, tx, abstract).trace(abstract, abstract_batch(config, mesh))

    # ---- Folder
    with together():
        workdir = check_run(config)
    if config.compilation_cache:
        cache = epath.Path(config.compilation_cache).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache))

    with contextlib.ExitStack() as stack, jax.set_mesh(mesh):
        # ---- Data
        with clock("data"):
            with together():
                tokenizer, data = _data(config, workdir)
            identity = {"data": data["train"].fingerprint, "tokenizer": tokenizer.fingerprint}
            agree(identity)
            with together():
                # Last: bad input leaves no folder behind.
                stack.enter_context(open_run(config, workdir, tokenizer))
            loader = _loader(config, data["train"], mesh, stack, shuffle=True)
            held_out = data.get("validation")
            validation = None
            if held_out is not None:
                validation = _loader(config, held_out, mesh, stack, shuffle=False)

        # ---- State: the newest checkpoint that verifies, or fresh.
        keep, keep_every = config.checkpoint.keep, config.checkpoint.keep_every
        checkpoints = stack.enter_context(
            Checkpointer(workdir / "checkpoints", keep=keep, keep_every=keep_every)
        )
        with clock("restore"):
            state, start = _restore(checkpoints, abstract, identity, workdir)
            if state is None:
                state = sharded_init(config.seed, config.model, tx, abstract)
                if config.init_from is not None:
                    params = load_params(config.init_from, abstract.params)
                    state = dataclasses.replace(state, params=params)

        # ---- Compile
        with clock("compile"), together():
            step: Any = traced.lower().compile() if start < config.steps else None

        # ---- Steps
        schedule = learning_rate(config.optimizer, config.steps)
        report = stack.enter_context(Reporter(config, workdir, clock, schedule, start))
        examine = _Examiner(config, workdir, mesh, tokenizer, validation, report, sample)
        preemption = stack.enter_context(Preemption())
        profiler = _Profiler(config.profile_steps, workdir, report.settle)
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
                    checkpoints.save(done, state, identity)
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
            evaluation=examine.result,
            seconds=dict(clock.seconds),
            goodput=clock.goodput(),
            picture=str(picture) if picture.exists() else None,
            samples=str(samples[-1]) if samples else None,
        )


class _Examiner:
    """Evaluates, writes samples and draws the loss curve."""

    def __init__(
        self,
        config: TrainConfig,
        workdir: epath.Path,
        mesh: Mesh,
        tokenizer: Tokenizer,
        validation: Loader | None,
        report: Reporter,
        sample: Sampler | None,
    ):
        self.config, self.workdir, self.mesh = config, workdir, mesh
        self.tokenizer, self.validation, self.report = tokenizer, validation, report
        self.sample = sample
        self.eval_step = jit_eval_step(config.model, config.accumulate)
        self.result: Evaluation | None = None

    def due(self, step: int) -> bool:
        """At multiples of eval_every and after the last step."""
        every = self.config.eval_every
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def catch_up(self, step: int, state: TrainState) -> None:
        """Make the evaluation that SIGTERM cut off right before the checkpoint was saved."""
        if step and self.due(step):
            lines = read_metrics(self.workdir / METRICS_FILE)
            made = any(m["step"] == step and "eval/step" in m for m in lines)
            if not said_by_main(made):
                self(step, state)

    def __call__(self, step: int, state: TrainState) -> None:
        with self.report.aside("eval"):
            line: dict[str, float | int | str] = {"eval/step": step}
            if self.validation is not None:
                self.result = evaluate(
                    self.eval_step,
                    state.params,
                    self.validation,
                    self.tokenizer,
                    self.mesh,
                    max_batches=self.config.eval_batches,
                    beat=self.report.beat,
                )
                line |= {
                    "eval/loss": self.result.loss,
                    "eval/perplexity": self.result.perplexity,
                    "eval/bits_per_byte": self.result.bits_per_byte,
                }
                text = "step %d: validation loss %.3f, %.3f bits per byte"
                logger.info(text, step, self.result.loss, self.result.bits_per_byte)
            self.report.write(step, line)
            self.report.sync()
            texts = []
            if self.sample is not None:
                for prompt in self.config.sample_prompts:
                    texts.append(self.sample(state.params, self.tokenizer, prompt))
            if jax.process_index() == 0:
                write_loss_curve(self.workdir)
                if texts:
                    write_samples(self.workdir, step, texts)


class _Profiler:
    """Context that traces the steps first..last into RUN/profile, for xprof; (0, 0) for none.

    `settle` waits for the step in flight, so that the trace has the whole of these and no other.
    """

    def __init__(self, steps: tuple[int, int], workdir: epath.Path, settle: Callable[[], None]):
        self.first, self.last = steps
        self.settle = settle
        self.mirror = Mirror(workdir / "profile")
        self.running = False

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        self.mirror.close()

    def before(self, step: int) -> None:
        """Call before each step."""
        if self.last and step == self.first:
            self.settle()
            jax.profiler.start_trace(str(self.mirror.local))
            self.running = True
        elif self.running and step == self.last + 1:
            self.settle()
            self._stop()

    def _stop(self) -> None:
        if self.running:
            jax.profiler.stop_trace()
            self.running = False
            self.mirror.upload()
            logger.info("profile written to %s: open it with xprof", self.mirror.folder)


def write_samples(workdir: epath.Path, step: int, texts: Sequence[str]) -> None:
    """RUN/samples/step-NNNNNNNN.txt."""
    folder = workdir / "samples"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"step-{step:08d}.txt").write_text("\n\n---\n\n".join(texts) + "\n")


def _tokenizer(config: TrainConfig, workdir: epath.Path) -> Tokenizer:
    """The run's own copy if it has one, else that of the model to start from, or of the data."""
    if (workdir / MODEL_FILE).exists():
        return Tokenizer.load(workdir)
    data = config.data
    if config.init_from is not None and data.tokenizer is None:
        data = dataclasses.replace(data, tokenizer=config.init_from)
    return resolve_tokenizer(data, config.model.vocab_size)


def _data(config: TrainConfig, workdir: epath.Path) -> tuple[Tokenizer, dict[str, Mixture]]:
    tokenizer = _tokenizer(config, workdir)
    return tokenizer, prepare(config.data, tokenizer, seq_len=config.seq_len)


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


def _restore(
    checkpoints: Checkpointer, abstract: TrainState, identity: dict[str, str], workdir: epath.Path
) -> tuple[TrainState | None, int]:
    if not said_by_main(bool(checkpoints.steps())):
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
