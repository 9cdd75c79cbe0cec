"""Guesses change no token and no bit, whatever they are; the good ones save steps."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_jax.infer.engine.drafts import agreed, from_the_text
from tests.infer.engine.tiny import Heard, all_free, alone, request


@pytest.fixture
def guessing(engine, monkeypatch):
    """Sets how many tokens are guessed, and by what."""

    def set_(drafts, propose=from_the_text):
        monkeypatch.setattr(engine, "drafts", drafts)
        monkeypatch.setattr(engine, "propose", propose)

    return set_


WANTED = [
    request([1, 5, 9, 5, 9, 5], 14, scored=True),
    request(range(1, 14), 14, temperature=1.0, seed=3, scored=True, stop_ids=(7, 33)),
    request([4], 20, temperature=0.9, top_p=0.8, seed=4),
    request([2, 3, 2, 3], 1),
    request([1, 5, 9], 8, presence_penalty=1.5, bias={5: 2.0}),
]


@pytest.mark.parametrize("drafts", [1, 2])
@pytest.mark.parametrize("kind", ["text", "right", "wrong", "any"])
def test_the_text_and_its_scores_are_those_without_guesses(engine, guessing, kind, drafts):
    guessing(0)
    expected = [alone(engine, wanted) for wanted in WANTED]
    chance = random.Random(0)
    whole = {tuple(w.prompt): [*w.prompt, *r[0]] for w, r in zip(WANTED, expected, strict=True)}

    def told(tokens, most):
        """What will be drawn."""
        (found,) = (t for p, t in whole.items() if t[: len(tokens)] == tokens and
                    tuple(tokens[: len(p)]) == p)  # fmt: skip
        return found[len(tokens) : len(tokens) + most]

    propose = {
        "text": from_the_text,
        "right": told,
        "wrong": lambda tokens, most: [(t + 1) % 62 for t in told(tokens, most)],
        "any": lambda tokens, most: [
            chance.randrange(62) for _ in range(chance.randrange(most + 1))
        ],
    }[kind]
    guessing(drafts, propose)
    for together in (1, 5):
        draws, accepted = engine.totals.draws, engine.totals.accepted
        for begin in range(0, 5, together):
            engine.scheduler.pool.forget()
            heard = Heard()
            tickets = [
                engine.submit([wanted], heard)[0] for wanted in WANTED[begin : begin + together]
            ]
            while not engine.idle:
                engine.step()
            results = [heard.result(ticket) for ticket in tickets]
            assert results == expected[begin : begin + together]
        assert all_free(engine)
        drawn = sum(len(r[0]) for r in expected)
        if together == 1 and kind == "right":
            # Nothing is guessed for the last token, nor where a bias or a penalty acts.
            assert engine.totals.accepted - accepted >= (drawn - 8) * drafts // (drafts + 1) - 4
            assert engine.totals.draws - draws == drawn - (engine.totals.accepted - accepted)
        if kind == "wrong":
            assert engine.totals.accepted == accepted


def test_what_followed_the_last_words_before_is_guessed():
    assert from_the_text([1, 2, 3, 9, 1, 2, 3], 2) == [9, 1]
    assert from_the_text([5, 6, 1, 5, 6, 2, 5, 6], 1) == [2]
    # The longest match counts more than the latest.
    assert from_the_text([1, 2, 3, 7, 0, 2, 3, 8, 1, 2, 3], 1) == [7]
    assert from_the_text([1, 2, 3], 4) == []
    assert from_the_text([], 4) == []


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 6))
def test_a_guess_is_a_piece_of_the_text(tokens, most):
    guess = from_the_text(tokens, most)
    assert len(guess) <= most
    assert not guess or any(
        tokens[i : i + len(guess)] == guess for i in range(len(tokens) - len(guess) + 1)
    )


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.data())
def test_tokens_count_up_to_the_first_wrong_guess(drawn, data):
    size = len(drawn) - 1
    drafts = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    wrong = [n for n in range(size) if drafts[n] != drawn[n]]
    assert agreed(drawn, drafts) == (wrong[0] + 1 if wrong else len(drawn))
