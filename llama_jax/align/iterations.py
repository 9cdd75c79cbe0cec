"""The reinforcement-learning loop that PPO and GRPO share, in chapters.

    hosts - source - mesh - folder - prompts - models - state - iterations

An iteration draws answers, scores them, and makes one update for each minibatch of them. Answers
are kept on disk until a checkpoint is past them, and all else follows from settings, seeds and that
checkpoint: a run that is killed anywhere resumes to the same bytes.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from llama_jax.align.limits import check_sampled, check_updated, why_stop
from llama_jax.align.opening import opened_run
from llama_jax.align.progress import Progress
from llama_jax.align.prompt_order import prompt_order, sample_of
from llama_jax.align.rewards import Rewards, Scores
from llama_jax.align.rollouts import Rollouts
from llama_jax.align.scoring import RewardModel, Scorer, open_reward_model
from llama_jax.align.trainer import Trainer
from llama_jax.align.variety import variety
from llama_jax.checkpoint import Checkpointer
from llama_jax.config import adapted
from llama_jax.config_align import PolicyConfig
from llama_jax.data.chat import JINJA
from llama_jax.data.conversations import EncodedPrompt, prepare_prompts
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.models import Opened, base_pointer, params_digest
from llama_jax.runtime.hosts import fail_together, require_agreement
from llama_jax.runtime.preemption import Preemption
from llama_jax.train.loop import find_tokenizer, restore
from llama_jax.train.metrics import METRICS_FILE, Clock, read_metrics
from llama_jax.train.run import write_run

logger = logging.getLogger(__name__)
Metrics = dict[str, float]


@runtime_checkable
class Learner(Protocol):
    """An algorithm: its rewards, the experience it makes of them, and its updates."""

    config: Any
    trainer: Trainer
    reference: Scorer

    @property
    def rewards(self) -> Rewards:
        """Scores the answers."""
        ...

    def begin(self) -> None:
        """The first states of the trainer."""
        ...

    def experience(
        self, number: int, rows: Mapping[str, np.ndarray], scores: Scores, stopped: np.ndarray
    ) -> tuple[dict[str, np.ndarray], Metrics]:
        """Rows with everything that updates read, and the metrics of the answers of iteration
        `number`."""
        ...

    def update(self, number: int, rows: Mapping[str, np.ndarray]) -> Metrics:
        """Runs the updates of a minibatch and returns their metrics; none if it carries no
        signal."""
        ...

    def check(self, lines: Sequence[Mapping[str, int | float]]) -> None:
        """Raise TrainingError if the metrics of all iterations so far cannot be right."""
        ...


@dataclass(frozen=True)
class PolicySummary:
    """The outcome of a call of `run`."""

    workdir: str
    step: int
    """Iterations in the newest checkpoint."""
    steps: int
    resumed_from: int
    stopped: str | None
    """Why the run ended before its last iteration; None if it did not."""
    last: Metrics
    """Metrics of the last iteration of this call."""
    seconds: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do; False where SIGTERM came first."""
        return self.step == self.steps or self.stopped is not None

    def lines(self) -> list[str]:
        """The summary for people."""
        state = "complete" if self.finished else "stopped early; the same command resumes"
        state = self.stopped or state
        lines = [f"iteration {self.step} of {self.steps}: {state}"]
        for name, *keys in (
            ("score", "score/mean"),
            ("KL an answer", "kl/answer"),
            ("held-out score", "heldout/score", "heldout/proxy"),
        ):
            found = [self.last[key] for key in keys if key in self.last]
            if found:
                lines.append(f"  {name:<16} {found[0]:.3f}")
        spent = ", ".join(f"{name} {s:.0f} s" for name, s in self.seconds.items())
        return [*lines, f"  time             {spent}"]


def run[C: PolicyConfig](
    config: C, open_learner: Callable[[C, Tokenizer, Opened, Mesh], Learner]
) -> PolicySummary:
    """Train or resume; ends after `steps` iterations, early where the settings say, or on SIGTERM.

    `open_learner` reads the models that an algorithm needs.

    Raises:
      InputError: settings, models, prompts or the folder do not fit, or a reward function fails.
      TrainingError: the numbers of an iteration cannot be right, see `limits`.
      CheckpointError: a checkpoint could not be written, or none of several could be read.
    """
    clock = Clock()
    with opened_run(config, config.minibatch) as opening, contextlib.ExitStack() as stack:
        config, workdir, source, mesh = opening

        # ---- Prompts: those of the validation split are never trained on.
        with fail_together():
            tokenizer = find_tokenizer(config, workdir, source)
            limit = config.seq_len - config.max_new_tokens
            prompts = prepare_prompts(config.data, tokenizer, max_tokens=limit)
            train = prompts["train"]
            held = prompts.get("validation", ())
            heldout = sample_of(held, config.seed, config.heldout_prompts)

        # ---- Models: those that judge, the reference, and those that learn.
        with fail_together(), clock("models"):
            learner = open_learner(adapted(config), tokenizer, source, mesh)
            trainer = learner.trainer
            examiner = _examiner(config, tokenizer, trainer)
            pointer = {}
            if config.lora.rank:  # a checkpoint holds adapters alone
                pointer = {"base": trainer.base.identity} | base_pointer(source, workdir)
            identity = {
                "reward model": learner.rewards.digest(),
                "reference": params_digest(learner.reference.params),
                "tokenizer": tokenizer.fingerprint,
            }
        require_agreement(identity)
        with fail_together():
            # Last: bad input leaves no folder behind.
            write_run(config, workdir, tokenizer, source, JINJA)

        # ---- State: the newest checkpoint that verifies, or the beginning.
        keep, keep_every = config.checkpoint.keep, config.checkpoint.keep_every
        checkpoints = stack.enter_context(
            Checkpointer(workdir / "checkpoints", keep=keep, keep_every=keep_every)
        )
        state, start = restore(checkpoints, trainer.tree(), identity, workdir)
        if state is None:
            learner.begin()
        else:
            trainer.take(state)

        # ---- Iterations
        progress = stack.enter_context(Progress(config, workdir, clock, start, "iteration"))
        preemption = stack.enter_context(Preemption())
        rollouts = Rollouts(config, workdir, tokenizer, prompt_len=limit)
        lines = [m for m in read_metrics(workdir / METRICS_FILE) if m["step"] <= start]
        shares, each = [p.share for p in train], config.batch_size // config.answers
        done, last, stopped = start, {}, why_stop(config, lines)
        while done < config.steps and stopped is None:
            chosen = prompt_order(shares, config.seed, done * each, each)
            last = iteration(done, [train[p] for p in chosen], learner, rollouts, progress)
            done += 1
            lines.append({"step": done, **last})
            check_updated(config, lines)
            learner.check(lines)
            every = config.eval_every
            if heldout and every and (done % every == 0 or done == config.steps):
                last |= examine(done, heldout, learner, examiner, rollouts, progress)
                lines[-1] |= last
            said = f"score {last['score/mean']:.2f}, KL {last['kl/answer']:.2f}"
            progress.report(done, last, said)
            progress.sync()
            stopped = why_stop(config, lines)
            stop = preemption.reached(done) or stopped is not None
            if stop or done % config.checkpoint.every == 0 or done == config.steps:
                with progress.phase("checkpoint"):
                    checkpoints.save(done, trainer.tree(), identity | pointer)
                    checkpoints.wait()
                rollouts.forget(done)
            if stop:
                break
        rollouts.forget(done)  # those of a run that was killed between its last save and this
        if stopped is not None:
            logger.info("ended at iteration %d: %s", done, stopped)
        return PolicySummary(
            str(workdir), done, config.steps, start, stopped, last, dict(clock.seconds)
        )


def _examiner(config: PolicyConfig, tokenizer: Tokenizer, trainer: Trainer) -> RewardModel | None:
    """The reward model that tells what a policy learned from the others."""
    if config.heldout is None:
        return None
    return open_reward_model(
        config.heldout,
        tokenizer,
        seq_len=config.seq_len,
        block=trainer.reference.block,
        base=trainer.base if config.lora.rank else None,
    )


def iteration(
    number: int,
    prompts: Sequence[EncodedPrompt],
    learner: Learner,
    rollouts: Rollouts,
    progress: Progress,
) -> Metrics:
    """Samples answers to the prompts, scores them, and updates on each minibatch; returns the
    metrics."""
    config = learner.config
    with progress.phase("generate"):
        rows, stopped, drawn = rollouts.draw(number, prompts, learner.trainer.scorer("policy"))
    asked = [prompt for prompt in prompts for _ in range(config.answers)]
    answers = rollouts.answers(rows, stopped)
    with progress.phase("score"):
        scores = learner.rewards.score(asked, rows, answers)
        experience, metrics = learner.experience(number, rows, scores, stopped)
    check_sampled(config, number + 1, metrics)
    with progress.phase("update"):
        parts = (
            {k: a[first : first + config.minibatch] for k, a in experience.items()}
            for first in range(0, config.batch_size, config.minibatch)
        )
        steps = [learner.update(number, part) for part in parts]
    rollouts.write("completions", number + 1, asked, answers, scores)
    for name in {name: None for step in steps for name in step}:
        found = [step[name] for step in steps if name in step]
        metrics[name] = float(np.mean(found))
        if name == "policy/ratio":
            metrics["policy/ratio_first"] = found[0]
    return metrics | variety("answer", [a.text for a in answers]) | drawn


def of_helpfulness(
    scores: Float[np.ndarray, " R"], prompts: Sequence[EncodedPrompt]
) -> Float[np.ndarray, " P"]:
    """The scores of answers to prompts that ask for no safety, of which a model of helpfulness was
    taught what to think; all, if there are no others."""
    asked = ~np.array([p.safety for p in prompts])
    return scores[asked] if asked.any() else scores


def examine(
    done: int,
    prompts: Sequence[EncodedPrompt],
    learner: Learner,
    examiner: RewardModel | None,
    rollouts: Rollouts,
    progress: Progress,
) -> Metrics:
    """Scores of held-out answers, by the policy's rewards and by a reward model unknown to the
    policy."""
    with progress.phase("eval"):
        rows, stopped = rollouts.draw_heldout(prompts, learner.trainer.scorer("policy"))
        answers = rollouts.answers(rows, stopped)
        scores = learner.rewards.score(prompts, rows, answers)
        metrics = {"heldout/proxy": float(scores.combined.mean())}
        if examiner is not None:
            found = examiner.scores(rows)
            if learner.config.safety:
                found = of_helpfulness(found, prompts)
            metrics["heldout/score"] = float(found.mean())
        rollouts.write("samples", done, prompts, answers, scores)
    return metrics | variety("heldout", [a.text for a in answers])
