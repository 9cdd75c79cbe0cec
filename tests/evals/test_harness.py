"""The adapter for lm-evaluation-harness, on a stand-in for its package."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from llama_jax.config import InputError
from llama_jax.evals.harness import _cut, _writing, adapt
from llama_jax.evals.language_model import Answer, Likelihood
from llama_jax.evals.likelihood import Pair
from llama_jax.evals.model_under_test import ModelUnderTest
from llama_jax.model.presets import TINY
from llama_jax.models import Model


class Recorder(ModelUnderTest):
    """What the adapter asks of a model with a context of 6 tokens, a character each."""

    context, digest = 6, "d"

    def likelihoods(self, requests):
        for n in reversed(range(len(requests))):
            text = "".join(requests[n])
            yield n, Likelihood(-float(len(text)), n == 0, 1) if len(text) <= 6 else None

    def encode_pair(self, request):
        return Pair([ord(c) for c in request.context], [ord(c) for c in request.continuation])

    def score(self, pairs):
        for n, pair in enumerate(pairs):
            yield n, Likelihood(-100.0 - len(pair.context), False, 1)

    def rolling(self, texts, stride):
        assert stride == 0
        yield from ((n, Likelihood(-float(len(text)), False, 1)) for n, text in enumerate(texts))

    def answers(self, prompts, writing):
        for n, (_, prompt) in enumerate(prompts):
            said = f"{prompt} {writing.max_new_tokens} {writing.until} {writing.temperature}"
            yield n, [Answer(said, False)] if len(prompt) < 6 else None


@pytest.fixture
def adapted(monkeypatch):
    harness = ModuleType("lm_eval.api.model")
    harness.LM = type("LM", (), {})
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.api", ModuleType("lm_eval.api"))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", harness)
    model = adapt(Recorder(Model(TINY, {}, None), rows=1))
    assert isinstance(model, harness.LM)
    return model


def instances(*arguments):
    return [SimpleNamespace(args=args) for args in arguments]


def test_likelihoods_come_back_in_order_and_what_is_cut_is_said(adapted, caplog):
    found = adapted.loglikelihood(instances(("ab", "c"), ("", "x"), ("abcdefgh", "ij")))
    assert found == [(-3.0, True), (-1.0, False), (-105.0, False)]
    assert "1 of 3 requests are longer than the context of 6 tokens" in caplog.text
    assert adapted.loglikelihood_rolling(instances(("abc",), ("a",))) == [-3.0, -1.0]
    assert adapted.tokenizer_name.startswith("d-")
    assert adapted.tokenizer_name == adapted.tokenizer_name


def test_conversations_are_written_out_for_the_harness(adapted, monkeypatch):
    monkeypatch.setattr(Recorder, "written_out", lambda self, messages: f"{len(messages)} turns")
    assert adapted.apply_chat_template([{"role": "user", "content": "hi"}]) == "1 turns"
    assert "[INST]" in adapted.chat_template(True)
    with pytest.raises(InputError, match="gen_prefix"):
        adapted.apply_chat_template([], add_generation_prompt=False)
    with pytest.raises(InputError, match="apply_chat_template=fancy: this model has one"):
        adapted.chat_template("fancy")


def test_the_end_of_a_long_request_is_kept():
    """Inputs are all but the last id, so context + 1 ids are read."""
    assert _cut(Pair(range(10), [20, 21]), 6) == Pair(range(5, 10), [20, 21])
    assert _cut(Pair(range(3), list(range(9))), 6) == Pair(range(2, 3), [3, 4, 5, 6, 7, 8])


def test_texts_are_drawn_with_each_request_s_own_settings(adapted, caplog):
    greedy = {"until": ["\n"], "max_gen_toks": 5}
    found = adapted.generate_until(
        instances(
            ("a", greedy), ("b", {"until": "Q", "do_sample": True, "temperature": 0.5}),
            ("c", greedy), ("too long", greedy),
        )
    )  # fmt: skip
    assert found == ["a 5 ('\\n',) 0.0", "b 256 ('Q',) 0.5", "c 5 ('\\n',) 0.0", ""]
    assert "1 of 4 prompts are longer" in caplog.text


def test_sampling_is_what_the_harness_means_by_its_settings():
    assert _writing({"do_sample": False, "temperature": 0.7}).temperature == 0.0
    assert _writing({"temperature": 0.7, "top_p": 0.9}).temperature == 0.7
    assert _writing({}).until == ()


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "lm_eval.api.model", raising=False)
    with pytest.raises(InputError, match="pip install lm_eval"):
        adapt(Recorder(Model(TINY, {}, None), rows=1))
