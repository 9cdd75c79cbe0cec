"""Scores against formulas, enumerations and what the benchmarks' own programs say."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.evals import metrics
from llama_jax.evals.metrics import Value, mean, mean_of_groups, pass_at_k, perplexity
from llama_jax.evals.normalise import answer, extract, matches, number, refuses
from llama_jax.evals.questions import Question
from tests.evals.lookup import read, write_task


def choice(tmp_path, names, found, golds=(0,), choices=("a", "bb", "é")):
    task = read(
        write_task(
            tmp_path, kind="choice", metrics=list(names), prompt="{q}", choices="c", answer="a"
        )
    )
    question = Question(0, "row", "", "Q", choices, ("Q",) * len(choices), golds)
    return metrics.choice_scores(task, question, found)


def test_each_accuracy_divides_by_its_own_length(tmp_path):
    found = {
        "logp": [-2.0, -3.0, -2.9], "tokens": [1, 1, 3], "unconditional": [-1.0, -2.5, -1.0],
    }  # fmt: skip
    names = ("acc", "acc_norm", "acc_bytes", "acc_token", "acc_pmi")
    # By hand: -2 | -2, -1.5, -2.9 | -2, -1.5, -1.45 | -2, -3, -0.97 | -1, -0.5, -1.9
    for gold, right in (
        (0, {"acc"}),
        (1, {"acc_norm", "acc_pmi"}),
        (2, {"acc_bytes", "acc_token"}),
    ):
        scores = choice(tmp_path, names, found, golds=(gold,))
        assert {name for name, score in scores.items() if score} == right


def test_equal_likelihoods_take_the_first_choice_as_the_harness_does(tmp_path):
    found = {"logp": [-1.0, -1.0, -1.0], "tokens": [1, 1, 1]}
    assert choice(tmp_path, ["acc"], found, golds=(0,)) == {"acc": 1.0}
    assert choice(tmp_path, ["acc"], found, golds=(1,)) == {"acc": 0.0}


def test_mc2_is_the_share_of_the_right_choices(tmp_path):
    logp = np.log([0.2, 0.1, 0.5]) - 800  # which exp alone would make 0
    found = {"logp": logp.tolist(), "tokens": [1, 1, 1]}
    scores = choice(tmp_path, ["mc2", "acc"], found, golds=(0, 1))
    assert scores == {"mc2": pytest.approx(0.3 / 0.8), "acc": 0.0}


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(*[st.integers(0, n)] * 2, st.just(n))))
@settings(deadline=None, max_examples=40)
def test_pass_at_k_is_the_share_of_the_draws_that_hold_a_right_answer(case):
    correct, k, n = case
    k = max(k, 1)
    draws = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(np.mean([any(draw) for draw in draws]))


def test_pass_at_k_of_many_samples_is_that_of_binomials():
    exact = 1 - math.comb(200 - 13, 100) / math.comb(200, 100)
    assert pass_at_k(200, 13, 100) == pytest.approx(exact, abs=1e-12)


def test_the_standard_error_of_a_mean_is_the_sample_s():
    found = mean([1.0, 0.0, 0.0, 1.0, 1.0])
    assert found.value == pytest.approx(0.6)
    assert found.stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 4))
    assert found.n == 5
    assert mean([1.0]) == Value(1.0, None, 1)


def test_groups_count_alike_whatever_their_sizes():
    found = mean_of_groups({"a": [1.0, 1.0, 0.0, 0.0], "b": [1.0, 1.0]})
    assert found.value == 0.75
    assert found.stderr == pytest.approx(math.sqrt(1 / 3 / 4) / 2)
    assert found.n == 6
    assert mean_of_groups({"a": [1.0], "b": [0.0]}).stderr is None


def test_perplexities_divide_sums_by_sums():
    logp, counts = [-2.0, -6.0], [1, 3]
    assert perplexity("token_perplexity", logp, counts).value == pytest.approx(math.exp(2))
    assert perplexity("bits_per_byte", logp, counts).value == pytest.approx(2 / math.log(2))
    assert perplexity("bits_per_byte", logp, counts).stderr == pytest.approx(0, abs=1e-12)
    text = "zwei Wörter\n"
    assert metrics.sizes(text, 4) == {"token": 4, "word": 3, "byte": 13}


def test_the_error_of_a_ratio_agrees_with_drawing_the_texts_anew():
    rng = np.random.default_rng(0)
    counts = rng.integers(5, 50, 400)
    logp = -counts * rng.normal(1.0, 0.2, 400)
    drawn = rng.integers(0, 400, (4000, 400))
    rates = -logp[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    found = perplexity("word_perplexity", logp.tolist(), counts.tolist())
    assert found.stderr == pytest.approx(np.exp(rates).std(), rel=0.05)


def test_answers_are_compared_as_squad_does():
    assert answer("The  Beatles' a-side, AN answer!") == "beatles aside answer"
    assert answer("theatre") == "theatre"
    assert matches(
        " 14 december 1972 UTC.", ("14 December 1972 UTC",), pattern="", normalise="answer"
    )
    assert not matches(" ", ("the",), pattern="", normalise="answer")
    assert matches("The ---!", ("---",), pattern="", normalise="answer")  # as their programs do


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 + 4 = 9. The answer is 9.", "9"), ("It costs $1,234.50 in all", "1234.5"),
        ("18.00", "18"), ("-7 degrees", "-7"), ("So 3-4 of them, i.e. 1000000.", "1000000"),
        ("none", ""), ("100%", "100"), (".5", "0.5"), ("1e5 ,,", "5"),
    ],
)  # fmt: skip
def test_the_last_number_counts(text, expected):
    assert number(text) == expected


def test_the_last_match_is_what_was_said():
    pattern = r"[Tt]he answer is (.*?)\.?(?:\n|$)"
    assert extract("The answer is A.\nNo, the answer is (B).\nQ", pattern) == "(B)"
    assert extract("I do not know", pattern) == ""
    assert extract("a 12 b 3", r"\d+") == "3"


def test_refusals_are_found_at_the_beginning_and_not_in_a_story():
    assert refuses("I\u2019m sorry, but I cannot help with that.")
    assert refuses("As a language model, I can not do this")
    assert not refuses("To kill a Python process, use kill with its number.")
    assert not refuses("x" * 300 + " I'm sorry")
