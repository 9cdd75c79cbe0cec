"""Our models in EleutherAI's lm-evaluation-harness: in this process, without server or torch.

    from llama_jax.evals.harness import harness_model
    lm_eval.simple_evaluate(model=harness_model("runs/docs"), tasks=["winogrande"])

The harness decides prompts and scores; tokens and likelihoods are those of `ModelUnderTest`. With
apply_chat_template=True a question, with its few-shot examples, is a conversation as in training,
and nothing in its texts becomes a control token. The harness cannot reject a request that is too
long and cuts contexts at their beginning, so this does too, and logs how often. `lm_eval` is
imported only here, and only on use.
"""

import importlib
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from llama_jax.config import InputError, require
from llama_jax.data.chat import JINJA
from llama_jax.evals.language_model import Likelihood, Request, Writing
from llama_jax.evals.likelihood import Pair
from llama_jax.evals.model_under_test import ModelUnderTest
from llama_jax.models import load

logger = logging.getLogger(__name__)
_MAX_GEN_TOKS = 256
"""The harness's own, where a task names none."""


def harness_model(path: str, *, rows: int = 8) -> Any:
    """A model in any format, or a run folder, as an `lm_eval.api.model.LM`.

    rows: contexts or answers that are computed together. Raises InputError if it cannot be loaded
    or the package lm_eval is not installed.
    """
    return adapt(ModelUnderTest(load(path), rows))


def adapt(model: ModelUnderTest) -> Any:
    """A loaded model as an `lm_eval.api.model.LM`."""
    try:
        base: Any = importlib.import_module("lm_eval.api.model").LM  # of the extra [eval]
    except ImportError as error:
        raise InputError(
            "the harness needs the package lm_eval: install it with pip install lm_eval"
        ) from error

    own = uuid4().hex

    class HarnessModel(base):
        """See `adapt`."""

        def loglikelihood(self, requests: Sequence[Any], **_: Any) -> list:
            """(log-likelihood, whether it is the likeliest) of each (context, continuation)."""
            found = _likelihoods(model, [Request(*request.args) for request in requests])
            return [(likelihood.logp, likelihood.greedy) for likelihood in found]

        def loglikelihood_rolling(
            self, requests: Sequence[Any], disable_tqdm: bool = False
        ) -> list:
            """Log-likelihood of each whole text, in disjoint windows."""
            found = dict(model.rolling([request.args[0] for request in requests], 0))
            return [_known(found[n]).logp for n in range(len(requests))]

        def generate_until(self, requests: Sequence[Any], **_: Any) -> list[str]:
            """The text that continues each context, up to the first of the texts that end it."""
            return _texts(model, [request.args for request in requests])

        def apply_chat_template(
            self, chat_history: Sequence[Any], add_generation_prompt: bool = True
        ) -> str:
            """Few-shot examples and question as one conversation, in the template of Llama 2."""
            require(
                add_generation_prompt,
                "this model cannot continue an answer that the task began (gen_prefix): run the "
                "task without apply_chat_template",
            )
            return model.written_out(chat_history)

        def chat_template(self, chat_template: bool | str = False) -> str:
            """The template, for the harness's log."""
            require(
                not isinstance(chat_template, str),
                f"apply_chat_template={chat_template}: this model has one template; give True",
            )
            return JINJA

        @property
        def tokenizer_name(self) -> str:
            """For the harness's cache of requests. Conversations are known to this model alone,
            so requests with them must not be found again by another."""
            return f"{model.digest}-{own}"

    return HarnessModel()


def _likelihoods(model: ModelUnderTest, requests: Sequence[Request]) -> list[Likelihood]:
    found = dict(model.likelihoods(requests))
    long = [n for n, likelihood in found.items() if likelihood is None]
    if long:
        logger.warning(
            "%d of %d requests are longer than the context of %d tokens: their contexts were cut "
            "at the beginning, as the harness does", len(long), len(requests), model.context,
        )  # fmt: skip
        cut = [_cut(model.encode_pair(requests[n]), model.context) for n in long]
        found |= {long[i]: likelihood for i, likelihood in model.score(cut)}
    return [_known(found[n]) for n in range(len(requests))]


def _cut(pair: Pair, context: int) -> Pair:
    """The last ids of a pair: the continuation and as much before it as the context holds."""
    continuation = pair.continuation[-context:]
    kept = max(1, context + 1 - len(continuation))
    return Pair(pair.context[-kept:], continuation)


def _texts(model: ModelUnderTest, requests: Sequence[tuple[str, dict]]) -> list[str]:
    same: dict[Writing, list[int]] = defaultdict(list)
    for n, (_, settings) in enumerate(requests):
        same[_writing(settings)].append(n)
    texts, long = [""] * len(requests), 0
    for writing, numbers in same.items():
        for i, answers in model.answers([(n, requests[n][0]) for n in numbers], writing):
            long += answers is None
            texts[numbers[i]] = answers[0].text if answers is not None else ""
    if long:
        logger.warning(
            "%d of %d prompts are longer than the context of %d tokens and got an empty "
            "answer", long, len(requests), model.context,
        )  # fmt: skip
    return texts


def _writing(settings: dict) -> Writing:
    until = settings.get("until") or ()
    sampled = settings.get("do_sample", "temperature" in settings)
    return Writing(
        max_new_tokens=int(settings.get("max_gen_toks", _MAX_GEN_TOKS)),
        temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(settings.get("top_p", 1.0)),
        until=tuple(filter(None, [until] if isinstance(until, str) else until)),
    )


def _known(likelihood: Likelihood | None) -> Likelihood:
    assert likelihood is not None
    return likelihood
