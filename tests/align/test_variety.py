"""How varied texts are, against values by hand."""

import math

import pytest

from llama_jax.align.variety import distinct_2, repetition, self_bleu, variety


def test_distinct_2_is_the_share_of_different_word_pairs():
    assert distinct_2(["a b c", "a b d"]) == 3 / 4
    assert distinct_2(["a b", "a b", "a b"]) == 1 / 3
    assert distinct_2([]) == distinct_2(["", "alone"]) == 1  # nothing is said twice


def test_repetition_is_the_share_of_texts_that_repeat_themselves():
    loop = "on and on and on and on and"
    assert repetition([loop, "he said it and then he said no"]) == 1 / 2
    assert repetition(["a b c d a b c d"]) == 1
    assert repetition(["a b c d a b c"]) == repetition([""]) == repetition([]) == 0


def test_texts_that_are_all_the_same_have_a_self_bleu_of_one():
    assert self_bleu(["the cat sat on the mat"] * 3) == pytest.approx(1)
    assert self_bleu(["one"]) == self_bleu([]) == 0


def test_self_bleu_of_two_texts_is_bleu_by_hand():
    # Of "a b c d" against "a b c e f": 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, none of 1, which
    # counts as half a match. The other is one word longer.
    first = math.exp(1 - 5 / 4) * (3 / 4 * 2 / 3 * 1 / 2 * 0.5) ** 0.25
    # Of "a b c e f": 3 of 5, 2 of 4, 1 of 3, none of 2. It is longer: no penalty.
    second = (3 / 5 * 2 / 4 * 1 / 3 * 0.25) ** 0.25
    assert self_bleu(["a b c d", "a b c e f"]) == pytest.approx((first + second) / 2)


def test_a_word_said_twice_matches_as_often_as_another_text_has_it():
    # Unigrams: "a" twice, one matches; bigrams: "a a" does not match, half of one.
    one_sided = math.exp(min(0, 1 - 2 / 2)) * (1 / 2 * 0.5) ** 0.5
    other = (1 / 2 * 0.5) ** 0.5
    assert self_bleu(["a a", "a b"]) == pytest.approx((one_sided + other) / 2)


def test_empty_texts_are_no_trouble():
    assert 0 <= self_bleu(["", "", "a"]) <= 1
    assert variety("answer", ["", "a b"]).keys() == {
        "answer/distinct_2", "answer/repetition", "answer/self_bleu"
    }  # fmt: skip
