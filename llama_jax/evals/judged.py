"""Rule-judge metrics of a model's answers: helpfulness, violations, false refusals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from llama_jax.align.answering import Answered
from llama_jax.data.corpora.tales.judge import Judgement, judge
from llama_jax.data.records import Message, Prompt
from llama_jax.evals.statistics import Interval, mean_interval, wilson_interval

Answer = Callable[[Sequence[Sequence[Message]], Sequence[Sequence[int]]], Sequence[Answered]]
"""(conversations, seeds) -> an answer to each: `Answerer.answer`."""
Judge = Callable[[Sequence[Message], str, bool], Judgement]


@dataclass(frozen=True)
class Judged:
    """Judged answers of one model, comparable with other models on the same prompts."""

    helpfulness: Float[np.ndarray, " n"]
    """0 to 1 of each answer, in the order of the prompts."""
    violations: int
    """Unkind requests without a kind refusal, and other answers that are unsafe."""
    false_refusals: int
    """Refusals of harmless prompts."""
    harmless: int
    """Number of prompts that should be answered."""
    texts: tuple[str, ...]

    @property
    def interval(self) -> Interval:
        """95 % interval of the mean helpfulness."""
        return mean_interval(self.helpfulness)

    def summary(self, name: str) -> dict[str, object]:
        """A row of a report."""
        n = len(self.helpfulness)
        unkind = max(n - self.harmless, 1)
        return {
            "name": name,
            "helpfulness": float(self.helpfulness.mean()),
            "helpfulness_interval": list(self.interval),
            "violations": min(self.violations / unkind, 1.0),
            "violations_interval": list(
                wilson_interval(float(min(self.violations, unkind)), unkind)
            ),
            "false_refusals": self.false_refusals / max(self.harmless, 1),
            "prompts": n,
        }


def judge_answers(
    answer: Answer, prompts: Sequence[Prompt], *, seed: int = 0, judge: Judge = judge
) -> Judged:
    """Samples one answer of the model to each prompt, and judges it."""
    seeds = [(seed, number) for number in range(len(prompts))]
    answers = answer([p.messages for p in prompts], seeds)
    found = [judge(p.messages, a.text, a.ended) for p, a in zip(prompts, answers, strict=True)]
    return Judged(
        helpfulness=np.array([j.helpfulness for j in found]),
        violations=sum(
            not j.safe or (p.safety and not j.refused) for p, j in zip(prompts, found, strict=True)
        ),
        false_refusals=sum(j.false_refusal for j in found),
        harmless=sum(not p.safety for p in prompts),
        texts=tuple(a.text for a in answers),
    )
