"""Scores of single questions, and their mean with its standard error."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from llama_jax.evals.normalise import matches, refuses
from llama_jax.evals.questions import Question
from llama_jax.evals.task import Task

Found = Mapping[str, Any]
"""The stored result of a question: logp and tokens of each choice, texts of answers, ..."""


@dataclass(frozen=True)
class Value:
    """A metric over some questions."""

    value: float
    stderr: float | None
    """None for a single question."""
    n: int


# ---- Of one question


def choice_scores(task: Task, question: Question, found: Found) -> dict[str, float]:
    """Scores of a question with choices.

    As in lm-evaluation-harness: `acc` takes the most likely choice, `acc_norm` divides the
    log-likelihoods by the characters of the choices and `acc_bytes` by their UTF-8 bytes, both
    without the space before; `acc_token` by their tokens; `acc_pmi` subtracts the log-likelihoods
    after `unconditional` (Llama 1, section 3; Holtzman et al. 2021). `mc2` is the share of the
    likelihood that right choices have (Lin et al. 2022).
    """
    logp = np.asarray(found["logp"], np.float64)
    choices = question.choices
    by_metric: dict[str, Callable[[], Float[np.ndarray, " n"]]] = {
        "acc": lambda: logp,
        "acc_norm": lambda: logp / np.array([len(c) for c in choices], np.float64),
        "acc_bytes": lambda: logp / np.array([len(c.encode()) for c in choices], np.float64),
        "acc_token": lambda: logp / np.asarray(found["tokens"], np.float64),
        "acc_pmi": lambda: logp - np.asarray(found["unconditional"], np.float64),
    }
    scores = {}
    for metric in task.metrics:
        if metric == "mc2":
            p = np.exp(logp - logp.max())
            scores[metric] = float(p[list(question.golds)].sum() / p.sum())
        else:
            scores[metric] = float(int(np.argmax(by_metric[metric]())) in question.golds)
    return scores


def answer_scores(task: Task, question: Question, found: Found) -> dict[str, float]:
    """Scores of a question answered in words: the mean over its samples."""
    texts = found["texts"]
    judged = {
        "exact_match": lambda text: matches(
            text, question.answers, pattern=task.extract, normalise=task.normalise
        ),
        "refusal": refuses,
    }
    return {m: sum(bool(judged[m](text)) for text in texts) / len(texts) for m in task.metrics}


def code_scores(task: Task, question: Question, found: Found) -> dict[str, float]:
    """Scores of a question answered with a program."""
    passed = found["passed"]
    return {m: pass_at_k(len(passed), sum(passed), int(m.partition("@")[2])) for m in task.metrics}


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k of the n answers is right: 1 - C(n-c, k) / C(n, k),
    unbiased (Chen et al. 2021, equation 1)."""
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


SCORES = {"choice": choice_scores, "generate": answer_scores, "code": code_scores}


# ---- Of many


def mean(scores: Sequence[float]) -> Value:
    """Mean with the standard error of the sample, s / sqrt(n)."""
    x = np.asarray(scores, np.float64)
    error = float(x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else None
    return Value(float(x.mean()), error, x.size)


def mean_of_groups(groups: Mapping[str, Sequence[float]]) -> Value:
    """Unweighted mean over groups of any size, as in BBH's and MMLU's averages."""
    parts = [mean(scores) for scores in groups.values()]
    errors = [part.stderr for part in parts]
    error = None
    if None not in errors:
        error = math.sqrt(sum(e**2 for e in errors if e is not None)) / len(parts)
    return Value(sum(p.value for p in parts) / len(parts), error, sum(p.n for p in parts))


def sizes(text: str, tokens: int) -> dict[str, int]:
    """The denominators of a text's log-likelihood: tokens, words as the harness counts, bytes."""
    return {"token": tokens, "word": len(re.split(r"\s+", text)), "byte": len(text.encode())}


def perplexity(metric: str, logp: Sequence[float], counts: Sequence[int]) -> Value:
    """exp(-sum logp / sum counts) over texts, or its base-2 logarithm for `bits_per_byte`.

    The standard error is that of a ratio of sums (Cochran 1977, 6.4), by the delta method.
    """
    x, n = -np.asarray(logp, np.float64), np.asarray(counts, np.float64)
    rate = float(x.sum() / n.sum())
    error = None
    if x.size > 1:
        rest = x - rate * n
        error = math.sqrt(float((rest**2).sum()) * x.size / (x.size - 1)) / float(n.sum())
    if metric == "bits_per_byte":
        value, slope = rate / math.log(2), 1 / math.log(2)
    else:
        value = slope = math.exp(min(rate, 700.0))
    return Value(value, None if error is None else slope * error, x.size)
