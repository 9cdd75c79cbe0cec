"""Rejection sampling and fine-tuning, V1 to V4 of the paper (Llama 2, section 3.2.3).

Every round leaves its answers in the bank, and nothing that is on disk is made again: the same
command resumes at any point, down to single answers.
"""

import logging
from dataclasses import dataclass

from llama_jax.align.bank import to_line
from llama_jax.align.opening import opened_run
from llama_jax.align.rejection_round import Round
from llama_jax.align.rewards import open_judges
from llama_jax.align.run_files import write_on_main
from llama_jax.config_align import RejectionConfig
from llama_jax.data.chat import JINJA
from llama_jax.data.conversations import prepare_prompts
from llama_jax.infer.rollout import UNKNOWN_ROWS
from llama_jax.models import load
from llama_jax.runtime.hosts import fail_together
from llama_jax.train.loop import find_tokenizer
from llama_jax.train.metrics import METRICS_FILE, Clock
from llama_jax.train.run import write_run

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RejectionSummary:
    """The outcome of a call of `rejection`."""

    workdir: str
    rounds: list[dict[str, float]]
    """For each complete round: temperature, prompts, winners, mean score of all answers and of the
    winners."""
    wanted: int
    """Rounds that the experiment asks for."""
    model: str
    """Run folder of the last complete round's fine-tuning."""
    seconds: dict[str, float]

    @property
    def finished(self) -> bool:
        """Whether all rounds are complete; False where SIGTERM came first."""
        return len(self.rounds) == self.wanted

    def lines(self) -> list[str]:
        """The summary for people: a row for each round."""
        table = [
            f"  {n:>5}  {r['temperature']:>11.2f}  {r['prompts']:>7.0f}  {r['score']:>10.3f}  "
            f"{r['winners_score']:>15.3f}"
            for n, r in enumerate(self.rounds, 1)
        ]
        head = "  round  temperature  prompts  mean score  winners' score"
        spent = ", ".join(f"{name} {s:.0f} s" for name, s in self.seconds.items())
        state = f"{len(table)} rounds complete"
        if not self.finished:
            state = f"{len(table)} of {self.wanted} rounds complete; the same command resumes"
        return [state, head, *table, f"  time   {spent}"]


def rejection(config: RejectionConfig) -> RejectionSummary:
    """Run or resume all rounds.

    Raises:
      InputError: settings, models, prompts or the folder do not fit.
    """
    clock = Clock()
    with opened_run(config, config.batch_size) as (config, workdir, source, _):
        with fail_together():
            tokenizer = find_tokenizer(config, workdir, source)
            limit = config.seq_len - config.max_new_tokens
            prompts = prepare_prompts(config.data, tokenizer, max_tokens=limit)
            judges = open_judges(config, tokenizer, block=config.wave_rows or UNKNOWN_ROWS)
            write_run(config, workdir, tokenizer, source, JINJA)

        # ---- Rounds: what a round leaves on disk is not made again.
        rounds, current = [], config.init_from
        for number in range(1, config.rounds + 1):
            this = Round(config, workdir, number, tokenizer, judges, clock)
            facts = this.facts()
            if facts is None:
                facts = this.draw_and_choose(load(current), prompts)
                if not this.fine_tune(current):
                    break  # SIGTERM; the fine-tuning goes on where it saved
                write_on_main(this.folder / "round.json", to_line(facts).encode())
            rounds.append(facts)
            logger.info(
                "round %d of %d: mean score %.3f, of the winners %.3f, temperature %.2f",
                number, config.rounds, facts["score"], facts["winners_score"], facts["temperature"],
            )  # fmt: skip
            current = str(this.folder / "sft")
        lines = "".join(to_line({"step": n, **facts}) for n, facts in enumerate(rounds, 1))
        write_on_main(workdir / METRICS_FILE, lines.encode())
        return RejectionSummary(str(workdir), rounds, config.rounds, current, dict(clock.seconds))
