"""Answers that keep to a grammar: what it forbids is never drawn, and nobody else notices."""

import numpy as np
import pytest

from llama_jax.infer.engine.programs import CompileCounter, words_of
from tests.infer.engine.tiny import Heard, all_free, alone, request, together
from tests.infer.small import SMALL, full

V = SMALL.vocab_size
PROMPT = (1, 5, 9)
TURNS = [{3, 40, 61}, {0, 31, 32, 33}, {17}, set(range(20, 50))]


class Turns:
    """Allows the sets of `TURNS`, one after another, and then nothing; `stuck` before one of them
    gives up."""

    def __init__(self, stuck=None):
        self.turn, self.stuck = 0, stuck

    def allowed(self):
        if self.turn == self.stuck:
            return None
        bits = np.zeros(32 * words_of(V), np.uint8)
        bits[list(TURNS[self.turn])] = 1
        return np.packbits(bits, bitorder="little").view(np.uint32)

    def take(self, token):
        assert token in TURNS[self.turn]
        self.turn += 1
        return "stop" if self.turn == len(TURNS) else None


def greedy_within():
    """The most probable allowed token, turn by turn, by full forward passes."""
    tokens = list(PROMPT)
    for turn in TURNS:
        row = np.asarray([tokens + [0] * (48 - len(tokens))])
        logits = np.asarray(full(row))[0, len(tokens) - 1]
        tokens.append(max(sorted(turn), key=lambda t: logits[t]))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize("bias", [{}, {2: 100.0}])
def test_the_best_of_what_is_allowed_is_drawn_and_its_end_ends_the_answer(engine, bias):
    tokens, scores, _, finish = alone(
        engine, request(PROMPT, 20, grammar=Turns, scored=True, bias=bias)
    )
    assert tokens == greedy_within()
    assert finish == "stop"
    # Log-probabilities are the model's own, up to rounding: a prompt's keys and values are computed
    # in chunks, an answer's one by one.
    free = alone(engine, request([*PROMPT, *tokens[:-1]], 1, scored=True))[1][0]
    for (one, found), (other, expected) in zip(scores[-1].top, free.top, strict=True):
        assert one == other
        assert found == pytest.approx(expected, abs=1e-3)


def test_an_answer_ends_at_its_limit_before_its_grammar_does(engine):
    tokens, _, _, finish = alone(engine, request(PROMPT, 2, grammar=Turns))
    assert (tokens, finish) == (greedy_within()[:2], "length")


@pytest.mark.parametrize("drafts", [0, 2])
def test_neighbours_of_any_kind_change_nothing_and_nothing_is_compiled(engine, monkeypatch, drafts):
    wanted = [
        request(PROMPT, 9, grammar=Turns, temperature=1.2, seed=1, scored=True),
        request(PROMPT, 9, temperature=1.2, seed=1, scored=True),
        request(PROMPT, 9, grammar=Turns, presence_penalty=1.0, scored=True),
        request(range(1, 12), 9, scored=True),
        request(PROMPT, 9, grammar=Turns, temperature=0.7, top_k=2, seed=8),
    ]
    compiled = CompileCounter()
    expected = [alone(engine, one) for one in wanted]
    monkeypatch.setattr(engine, "drafts", drafts)
    heard = Heard()
    tickets = together(engine, wanted, heard)
    assert [heard.result(ticket) for ticket in tickets] == expected
    assert compiled.count == 0
    assert all_free(engine)


def test_a_grammar_that_gives_up_ends_its_answer_alone(engine):
    other = request(range(1, 12), 6)
    expected = alone(engine, other)
    heard = Heard()
    wanted = [request(PROMPT, 9, grammar=lambda: Turns(2)), other]
    stuck, going = together(engine, wanted, heard)
    assert heard.result(stuck)[0] == greedy_within()[:2]
    assert heard.result(stuck)[3] == "stuck"
    assert heard.result(going) == expected
    assert all_free(engine)
