"""Evaluation, samples and profiling hooks of the training loop."""

import logging
from collections.abc import Callable, Sequence

import jax
from etils import epath
from jax.sharding import Mesh

from llama_jax.config import TrainConfig
from llama_jax.data.loader import Loader
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.runtime.hosts import broadcast_from_main
from llama_jax.train.evaluate import evaluate
from llama_jax.train.loss_curve import write_loss_curve
from llama_jax.train.metrics import METRICS_FILE, read_metrics
from llama_jax.train.report import Reporter
from llama_jax.train.samples import write_samples
from llama_jax.train.stage import Ask, Stage
from llama_jax.train.state import TrainState
from llama_jax.train.step import jit_eval_step
from llama_jax.train.uploads import Mirror

logger = logging.getLogger(__name__)


class Evaluator:
    """Evaluates on the validation split, writes samples and draws the loss curve."""

    def __init__(
        self,
        config: TrainConfig,
        stage: Stage,
        workdir: epath.Path,
        mesh: Mesh,
        tokenizer: Tokenizer,
        validation: Loader | None,
        report: Reporter,
        ask: Ask | None = None,
    ):
        self.ask = ask
        self.config, self.stage, self.workdir, self.mesh = config, stage, workdir, mesh
        self.tokenizer, self.validation, self.report = tokenizer, validation, report
        self.eval_step = jit_eval_step(stage.objective, config.accumulate)
        self.results: dict[str, float] | None = None
        """Of the last evaluation of this call."""

    def due(self, step: int) -> bool:
        """Whether to evaluate now: at multiples of eval_every and after the last step."""
        every = self.config.eval_every
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def catch_up(self, step: int, state: TrainState) -> None:
        """Run the evaluation that SIGTERM prevented, just before the checkpoint was saved."""
        if step and self.due(step):
            lines = read_metrics(self.workdir / METRICS_FILE)
            made = any(m["step"] == step and "eval/step" in m for m in lines)
            if not broadcast_from_main(made):
                self(step, state)

    def __call__(self, step: int, state: TrainState) -> None:
        """Evaluate now."""
        with self.report.aside("eval"):
            line: dict[str, float | int | str] = {"eval/step": step}
            if self.validation is not None:
                found = evaluate(
                    self.eval_step,
                    state.params,
                    self.validation,
                    self.mesh,
                    observe=lambda batch: self.stage.observe(batch, self.tokenizer),
                    max_batches=self.config.eval_batches,
                    beat=lambda done, batches: self.report.beat(),
                )
                self.results = self.stage.results(*found)
                line |= {f"eval/{name}": value for name, value in self.results.items()}
                said = ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in self.results.items())
                logger.info("step %d: validation %s", step, said)
            if self.ask is not None:
                model = self.stage.objective.model
                asked = self.ask(model, state.params, self.tokenizer, self.report.beat)
                line |= {f"eval/{name}": value for name, value in asked.items()}
                self.results = (self.results or {}) | dict(asked)
                said = ", ".join(f"{name} {value:.3f}" for name, value in asked.items())
                logger.info("step %d: tasks %s", step, said)
            self.report.write(step, line)
            self.report.sync()
            texts: Sequence[str] = ()
            if self.stage.sample is not None:
                texts = self.stage.sample(state.params, self.tokenizer)
            if jax.process_index() == 0:
                write_loss_curve(self.workdir)
                if texts:
                    write_samples(self.workdir, step, texts)


class Profiler:
    """Context that traces the steps first..last into RUN/profile, for xprof; (0, 0) for none.

    `settle` waits for the step in flight, so that the trace holds exactly these steps, completely.
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
