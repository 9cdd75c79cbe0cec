"""Proximal policy optimisation with two reward models (Llama 2, section 3.2.3), in chapters.

    hosts - source - mesh - folder - prompts - models - state - iterations

An iteration draws answers, scores them, and makes one update of policy and value for each
minibatch. Answers are kept on disk until a checkpoint is past them, and all else follows from
settings, seeds and that checkpoint: a run that is killed anywhere resumes to the same bytes.
"""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from llama_jax.align.experience import (
    Judges,
    make_experience,
    next_scale,
    open_judges,
    score_answers,
)
from llama_jax.align.ppo_limits import check_sampled, check_updated, why_stop
from llama_jax.align.ppo_rollouts import Rollouts
from llama_jax.align.ppo_trainer import Trainer
from llama_jax.align.progress import Progress
from llama_jax.align.prompt_order import prompt_order
from llama_jax.align.scoring import Scorer
from llama_jax.align.variety import variety
from llama_jax.checkpoint import Checkpointer
from llama_jax.config_align import PpoConfig
from llama_jax.data.conversations import EncodedPrompt, prepare_prompts
from llama_jax.models import params_digest
from llama_jax.parallel.arrays import check_batch
from llama_jax.parallel.mesh import make_mesh
from llama_jax.runtime.compilation_cache import keep_programs
from llama_jax.runtime.hosts import fail_together, require_agreement
from llama_jax.runtime.preemption import Preemption
from llama_jax.train.initial import open_source
from llama_jax.train.loop import find_tokenizer, restore
from llama_jax.train.metrics import METRICS_FILE, Clock, read_metrics
from llama_jax.train.run import check_run, claim_run, host_facts, run_path, write_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PpoSummary:
    """How a call of `ppo` ended."""

    workdir: str
    step: int
    """Iterations in the newest checkpoint."""
    steps: int
    resumed_from: int
    stopped: str | None
    """Why the run ended before its last iteration; None if it did not."""
    last: dict[str, float]
    """Metrics of the last iteration of this call."""
    seconds: dict[str, float]

    def lines(self) -> list[str]:
        """The summary for people."""
        state = "complete" if self.step == self.steps else "stopped early; the same command resumes"
        state = self.stopped or state
        lines = [f"iteration {self.step} of {self.steps}: {state}"]
        for name, key in (
            ("score", "score/mean"),
            ("KL an answer", "kl/answer"),
            ("held-out score", "heldout/score"),
        ):
            if key in self.last:
                lines.append(f"  {name:<16} {self.last[key]:.3f}")
        spent = ", ".join(f"{name} {s:.0f} s" for name, s in self.seconds.items())
        return [*lines, f"  time             {spent}"]


def ppo(config: PpoConfig) -> PpoSummary:
    """Train or resume; ends after `steps` iterations, early where the settings say, or on SIGTERM.

    Raises:
      InputError: settings, models, prompts or the folder do not fit.
      TrainingError: the numbers of an iteration cannot be right, see `ppo_limits`.
      CheckpointError: a checkpoint could not be written, or none of several could be read.
    """
    clock = Clock()
    # ---- Hosts, source, mesh, folder: as in pretraining, nothing is read before it fits.
    require_agreement(host_facts(config))
    with fail_together():
        workdir = run_path(config)
        config, source = open_source(config, workdir, resumes=False)
        assert source is not None, "PpoConfig requires init_from"
    mesh = make_mesh(config.mesh)
    check_batch(config.minibatch, config.seq_len, config.accumulate, mesh)
    with fail_together():
        check_run(config)
    keep_programs(config.compilation_cache)

    with contextlib.ExitStack() as stack, jax.set_mesh(mesh):
        with fail_together():
            stack.enter_context(claim_run(workdir))

        # ---- Prompts: those of the validation split are never trained on.
        with fail_together():
            tokenizer = find_tokenizer(config, workdir, source)
            limit = config.seq_len - config.max_new_tokens
            prompts = prepare_prompts(config.data, tokenizer, max_tokens=limit)
            train = prompts["train"]
            heldout = prompts.get("validation", ())[: config.heldout_prompts]

        # ---- Models: two or three that judge, the reference, policy and value.
        block = config.minibatch // config.accumulate
        with fail_together(), clock("models"):
            judges = open_judges(config, tokenizer, block=block, heldout=config.heldout)
            trainer = Trainer(config, judges.helpfulness.scorer.config, mesh)
            reference = Scorer(config.model, trainer.reference(source), block)
            identity = {
                "reward model": judges.digest(),
                "reference": params_digest(reference.params),
                "tokenizer": tokenizer.fingerprint,
            }
        require_agreement(identity)
        with fail_together():
            write_run(config, workdir, tokenizer)  # last: bad input leaves no folder behind

        # ---- State: the newest checkpoint that verifies, or the beginning.
        keep, keep_every = config.checkpoint.keep, config.checkpoint.keep_every
        checkpoints = stack.enter_context(
            Checkpointer(workdir / "checkpoints", keep=keep, keep_every=keep_every)
        )
        state, start = restore(checkpoints, trainer.abstract, identity, workdir)
        if state is None:
            trainer.begin(reference.params, judges.helpfulness.scorer.params)
        else:
            trainer.take(state)

        # ---- Iterations
        progress = stack.enter_context(Progress(config, workdir, clock, start, "iteration"))
        preemption = stack.enter_context(Preemption())
        models = Models(trainer, judges, reference)
        rollouts = Rollouts(config, workdir, tokenizer, prompt_len=limit)
        lines = [m for m in read_metrics(workdir / METRICS_FILE) if m["step"] <= start]
        shares = [p.share for p in train]
        done, last, stopped = start, {}, why_stop(config, lines)
        while done < config.steps and stopped is None:
            first = done * config.batch_size
            chosen = prompt_order(shares, config.seed, first, config.batch_size)
            last = iteration(done, [train[p] for p in chosen], models, rollouts, progress)
            done += 1
            lines.append({"step": done, **last})
            check_updated(config, lines)
            every = config.eval_every
            if heldout and every and (done % every == 0 or done == config.steps):
                last |= examine(done, heldout, models, rollouts, progress)
                lines[-1] |= last
            said = f"score {last['score/mean']:.2f}, KL {last['kl/answer']:.2f}"
            progress.report(done, last, said)
            progress.sync()
            stopped = why_stop(config, lines)
            stop = preemption.reached(done) or stopped is not None
            if stop or done % config.checkpoint.every == 0 or done == config.steps:
                with progress.phase("checkpoint"):
                    checkpoints.save(done, trainer.tree(), identity)
                    checkpoints.wait()
                rollouts.forget(done)
            if stop:
                break
        if stopped is not None:
            logger.info("ended at iteration %d: %s", done, stopped)
        return PpoSummary(
            str(workdir), done, config.steps, start, stopped, last, dict(clock.seconds)
        )


class Models(NamedTuple):
    """What an iteration reads, and what it trains."""

    trainer: Trainer
    judges: Judges
    reference: Scorer


def iteration(
    number: int,
    prompts: Sequence[EncodedPrompt],
    models: Models,
    rollouts: Rollouts,
    progress: Progress,
) -> dict[str, float]:
    """Answers to the prompts, their scores, and an update for each minibatch; the metrics."""
    trainer, config = models.trainer, models.trainer.config
    with progress.phase("generate"):
        rows, stopped, drawn = rollouts.draw(number, prompts, trainer.scorer("policy"))
    with progress.phase("score"):
        is_safety = np.array([p.safety for p in prompts])
        scores = score_answers(models.judges, rows, is_safety)
        trainer.scale = next_scale(config, trainer.scale, scores.combined)
        if number == 0:
            trainer.rescale_value(trainer.scale)
        experience, metrics = make_experience(
            config,
            rows=rows,
            scores=scores,
            scale=trainer.scale,
            stopped=stopped,
            policy=trainer.scorer("policy"),
            reference=models.reference,
            value=trainer.scorer("value"),
        )
    check_sampled(config, number + 1, metrics)
    steps: list[dict[str, float]] = []
    with progress.phase("update"):
        for first in range(0, config.batch_size, config.minibatch):
            part = {k: a[first : first + config.minibatch] for k, a in experience.items()}
            step = trainer.update("value", part)
            if number >= config.value_warmup:
                step |= trainer.update("policy", part)
            steps.append(step)
    texts = rollouts.texts(rows)
    rollouts.write("completions", number + 1, prompts, texts, scores, stopped)
    metrics |= {k: float(np.mean([s[k] for s in steps])) for k in steps[0]}
    if "policy/ratio" in steps[0]:
        metrics["policy/ratio_first"] = steps[0]["policy/ratio"]
    return metrics | variety("answer", texts) | drawn


def examine(
    done: int,
    prompts: Sequence[EncodedPrompt],
    models: Models,
    rollouts: Rollouts,
    progress: Progress,
) -> dict[str, float]:
    """Scores of held-out answers, by the policy's judges and by one that it never met."""
    judges = models.judges
    with progress.phase("eval"):
        rows, stopped = rollouts.draw_heldout(prompts, models.trainer.scorer("policy"))
        is_safety = np.array([p.safety for p in prompts])
        scores = score_answers(judges, rows, is_safety)
        metrics = {"heldout/proxy": float(scores.combined.mean())}
        if judges.heldout is not None:
            metrics["heldout/score"] = float(judges.heldout.scores(rows).mean())
        texts = rollouts.texts(rows)
        rollouts.write("samples", done, prompts, texts, scores, stopped)
    return metrics | variety("heldout", texts)
