"""Win rate of two models on the same prompts (Llama 2, sections 3.4 and A.3.7).

The judge is the rule judge of the embedded tales, a reward model, or a model behind an API, which
is asked in both orders. Ties count half. Never judge with the reward model that trained one of the
two: that model was optimised to score well on it.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax

from llama_jax.align.answering import Answered, Answerer
from llama_jax.align.scoring import open_reward_model, rows_of
from llama_jax.config import MeshConfig, require
from llama_jax.data import formats, sources
from llama_jax.data.chat import encode_answer, encode_prompt
from llama_jax.data.corpora.tales import instructions
from llama_jax.data.corpora.tales.judge import judge as rule_judge
from llama_jax.data.records import Prompt
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.evals.endpoint import Endpoint
from llama_jax.evals.kept_answers import KeptAnswers
from llama_jax.evals.run_task import Beat
from llama_jax.evals.statistics import WinRate, win_rate
from llama_jax.models import load, open_model
from llama_jax.parallel.mesh import make_mesh

RULES = "rules"
_AT_ONCE = 4  # requests to an endpoint
_TALES = 200

Score = Callable[[Sequence[Prompt], Sequence[Answered]], Sequence[float]]
"""Scores of answers to prompts, the higher the better."""


@dataclass(frozen=True)
class Versus:
    """How often the first model's answer is the better one."""

    ours: str
    theirs: str
    judge: str
    found: WinRate
    left_out: int
    """Number of prompts that are too long for one of the two."""

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "ours": self.ours, "theirs": self.theirs, "judge": self.judge,
            "win_rate": self.found.rate, "interval": list(self.found.interval),
            "wins": self.found.wins, "ties": self.found.ties, "losses": self.found.losses,
            "left_out": self.left_out,
        }  # fmt: skip

    def describe(self) -> str:
        """For people."""
        w = self.found
        lines = [
            f"win rate  {w.rate:.3f} of {self.ours} against {self.theirs}, ties half",
            f"95 %      {w.interval.low:.3f} to {w.interval.high:.3f}",
            f"prompts   {w.wins + w.ties + w.losses}: {w.wins} wins, {w.ties} ties, "
            f"{w.losses} losses",
            f"judge     {self.judge}",
        ]
        if self.left_out:
            lines.append(f"left out  {self.left_out} prompts that do not fit one of the models")
        return "\n".join(lines)


def read_prompts(spec: str, limit: int | None = None) -> list[Prompt]:
    """`tales`, `tales:N` (held-out ones), or a file of prompts in any format that `formats` knows.

    Raises InputError if there are none.
    """
    corpus, _, number = spec.partition(":")
    if corpus == "tales":
        count = sources.count(corpus, number) if number else _TALES
        found = [instructions.prompt(i, "validation") for i in range(count)]
    else:
        found = [r for r in formats.open_records(spec, "prompt") if isinstance(r, Prompt)]
    return found[:limit]


def versus(
    models: tuple[str, str],
    prompts: Sequence[Prompt],
    judge: str | Endpoint,
    *,
    folder: str,
    max_new_tokens: int = 256,
    rows: int = 8,
    beat: Beat = lambda done, total: None,
) -> Versus:
    """Let two models answer greedily, and judge their answers.

    Args:
      judge: `rules`, the path of a reward model, or an endpoint.
      folder: keeps the verdicts of an endpoint, which cost money, for the next call.

    Raises:
      InputError: a model or the judge cannot be used, or no prompt fits both models.
    """
    with jax.set_mesh(make_mesh(MeshConfig())):
        answerers = [_answerer(path, max_new_tokens, rows) for path in models]
        fit = [p for p in prompts if all(a.reads(p.messages) for a in answerers)]
        require(fit, f"none of {len(prompts)} prompts fits the contexts of both models")
        seeds = [(0, number) for number in range(len(fit))]
        ours, theirs = (a.answer([p.messages for p in fit], seeds) for a in answerers)
        if isinstance(judge, Endpoint):
            name = f"{judge.model} at {judge.url}, both orders"
            scores = both_orders(judge, fit, ours, theirs, folder=folder, beat=beat)
            found = win_rate(scores, [0.5] * len(scores))
        else:
            score, name = _score_of(judge, answerers[0].tokenizer, answerers, rows)
            found = win_rate(score(fit, ours), score(fit, theirs))
    return Versus(models[0], models[1], name, found, len(prompts) - len(fit))


def _answerer(path: str, max_new_tokens: int, rows: int) -> Answerer:
    model = load(path)
    room = model.config.max_seq_len - 1
    kept = max(1, min(max_new_tokens, room // 2))
    return Answerer.of(
        model, max_new_tokens=kept, temperature=0.0, wave_rows=rows, prompt_len=room - kept
    )


def _score_of(
    judge: str, tokenizer: Tokenizer, answerers: Sequence[Answerer], rows: int
) -> tuple[Score, str]:
    if judge == RULES:
        return score_by_rules, "the rules of the tales"
    # A space and EOS may follow an answer; those of the longest count for nothing if they are cut.
    longest = max(a.prompt_len + a.max_new_tokens for a in answerers)
    longest = max(longest, min(longest + 2, open_model(judge).config.max_seq_len))
    model = open_reward_model(judge, tokenizer, seq_len=longest, block=rows)

    def score(prompts: Sequence[Prompt], answers: Sequence[Answered]) -> Sequence[float]:
        texts = []
        for prompt, answer in zip(prompts, answers, strict=True):
            said = encode_answer(tokenizer, answer.text)
            # An answer that was cut off must not look finished.
            said = said if answer.ended else tokenizer.encode(f" {answer.text}")
            texts.append((encode_prompt(tokenizer, prompt.messages) + said)[:longest])
        return model.scores(rows_of(texts, longest)).tolist()

    return score, f"reward model {judge}"


def score_by_rules(prompts: Sequence[Prompt], answers: Sequence[Answered]) -> list[float]:
    """Helpfulness by the rule judge of the embedded tales; 0 for an unsafe answer."""
    found = [rule_judge(p.messages, a.text, a.ended) for p, a in zip(prompts, answers, strict=True)]
    return [j.helpfulness if j.safe else 0.0 for j in found]


def both_orders(
    judge: Endpoint,
    prompts: Sequence[Prompt],
    ours: Sequence[Answered],
    theirs: Sequence[Answered],
    *,
    folder: str,
    beat: Beat = lambda done, total: None,
) -> list[float]:
    """The mean of the verdicts of both orders for our answers: 1 if both prefer ours, 0.5 if they
    disagree. Stored verdicts are not asked for again."""
    asked = [
        (judge.prompt(p.messages, *pair), swapped)
        for p, a, b in zip(prompts, ours, theirs, strict=True)
        for pair, swapped in (((a.text, b.text), False), ((b.text, a.text), True))
    ]
    name = hashlib.sha256(f"{judge.url} {judge.model}".encode()).hexdigest()
    keys = [hashlib.sha256(text.encode()).hexdigest() for text, _ in asked]
    with KeptAnswers(folder, name, "verdicts") as kept, ThreadPoolExecutor(_AT_ONCE) as pool:
        waiting = {k: text for k, (text, _) in zip(keys, asked, strict=True) if not kept.get(k)}
        beat(len(asked) - len(waiting), len(asked))
        for done, (k, verdict) in enumerate(
            zip(waiting, pool.map(judge.prefers, waiting.values()), strict=True), 1
        ):
            kept.add(k, waiting[k], {"first": verdict})
            beat(len(asked) - len(waiting) + done, len(asked))
        verdicts = [(kept.get(k) or {})["first"] for k in keys]
    ours_first = [1 - v if swapped else v for v, (_, swapped) in zip(verdicts, asked, strict=True)]
    return [(a + b) / 2 for a, b in zip(ours_first[::2], ours_first[1::2], strict=True)]
