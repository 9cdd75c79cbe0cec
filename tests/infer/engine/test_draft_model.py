"""A small model's guesses change no token and no bit, whether it is good, bad or contrary."""

import random
from dataclasses import replace

import jax
import numpy as np
import pytest

from llama_jax.config import InputError
from llama_jax.infer.engine.draft_model import DraftModel
from llama_jax.infer.engine.engine import Engine
from llama_jax.infer.engine.programs import CompileCounter
from llama_jax.model.cache import prepare
from llama_jax.model.llama import init_params
from tests.infer.engine.tiny import LAYOUT, Heard, all_free, alone, request
from tests.infer.small import SMALL, params_of

# Ten rows: one draws, and up to nine are left to its guesses.
WIDE = replace(LAYOUT, rows=10, num_pages=120, fewer_rows=(1,))
SHALLOW = replace(SMALL, num_layers=1, max_seq_len=32)


def placed(params, config):
    return prepare(jax.device_put(params, jax.devices()[0]), config)


def nudged(noise):
    """The model itself with weights that are a little off."""
    leaves, tree = jax.tree.flatten(params_of(SMALL))
    chance = np.random.default_rng(0)
    moved = [p * (1 + noise * chance.standard_normal(p.shape).astype(p.dtype)) for p in leaves]
    return jax.tree.unflatten(tree, moved)


def contrary():
    """The model with its head upside down: the least probable token first."""
    params = params_of(SMALL)
    return {**params, "head": jax.tree.map(lambda w: -w, params["head"])}


DRAFTS = {
    "good": lambda: (placed(nudged(0.01), SMALL), SMALL),
    "bad": lambda: (placed(init_params(jax.random.key(9), SHALLOW), SHALLOW), SHALLOW),
    "contrary": lambda: (placed(contrary(), SMALL), SMALL),
}


@pytest.fixture(scope="module")
def wide():
    engine = Engine(placed(params_of(SMALL), SMALL), config=SMALL, layout=WIDE, queue=200)
    engine.warm_up()
    return engine


@pytest.fixture(
    scope="module",
    params=["good", pytest.param("bad", marks=pytest.mark.slow), "contrary"],
)
def draft(request):
    w, config = DRAFTS[request.param]()
    model = DraftModel(w, config=config, layout=WIDE, vocab_limit=SMALL.vocab_size)
    model.warm_up(lambda *_: None)
    return request.param, model


def prompts(count):
    chance = random.Random(count)
    for n in range(count):
        length = chance.randrange(1, 20)
        yield request(
            [chance.randrange(1, 62) for _ in range(length)],
            chance.randrange(1, 25),
            temperature=chance.choice([0.0, 0.7, 1.2]),
            top_k=chance.choice([0, 0, 5]),
            stop_ids=chance.choice([(), (7, 33)]),
            seed=n,
            scored=n % 3 == 0,
        )


@pytest.mark.parametrize("count", [6, pytest.param(100, marks=pytest.mark.slow)])
def test_the_text_and_its_scores_are_those_without_a_draft(wide, draft, count, monkeypatch):
    kind, model = draft
    wanted = list(prompts(count))
    monkeypatch.setattr(wide, "draft_model", None)
    expected = [alone(wide, one) for one in wanted]
    monkeypatch.setattr(wide, "draft_model", model)
    compiled, before = CompileCounter(), replace(wide.totals)
    for most in (1, 4, 8):
        monkeypatch.setattr(wide, "drafts", most)
        assert [alone(wide, one) for one in wanted] == expected
        # Several at once, which come one after another.
        heard, tickets = Heard(), []
        for one in wanted:
            tickets += wide.submit([one], heard)
            wide.step()
        while not wide.idle:
            wide.step()
        assert [heard.result(ticket) for ticket in tickets] == expected
        assert all_free(wide)
    assert compiled.count == 0
    drafted = wide.totals.drafted - before.drafted
    accepted = wide.totals.accepted - before.accepted
    assert drafted > 0
    if kind == "good":
        assert accepted > drafted / 2
    elif kind == "contrary":
        assert accepted < drafted / 20


def test_the_model_itself_guesses_right_throughout(wide, monkeypatch):
    """Its pages then hold what it would have computed without guesses, at every position."""
    own = DraftModel(
        placed(params_of(SMALL), SMALL), config=SMALL, layout=WIDE, vocab_limit=SMALL.vocab_size
    )
    own.warm_up(lambda *_: None)
    monkeypatch.setattr(wide, "draft_model", own)
    monkeypatch.setattr(wide, "drafts", 4)
    for temperature in (0.0, 1.0):
        drafted, accepted, draws = (
            wide.totals.drafted, wide.totals.accepted, wide.totals.draws
        )  # fmt: skip
        wanted = request(range(1, 10), 26, temperature=temperature, seed=5)
        assert len(alone(wide, wanted)[0]) == 26
        assert wide.totals.drafted - drafted == wide.totals.accepted - accepted == 20
        assert wide.totals.draws - draws == 6


def test_a_draft_with_fewer_tokens_is_refused():
    small = replace(SMALL, vocab_size=60)
    w = placed(init_params(jax.random.key(0), small), small)
    with pytest.raises(InputError, match="60 tokens, fewer than the 62"):
        DraftModel(w, config=small, layout=WIDE, vocab_limit=62)
