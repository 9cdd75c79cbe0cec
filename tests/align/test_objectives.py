"""What fine-tuning and PPO minimise, against NumPy float64 written from the formulas."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.align.logprobs import batch_logprobs, next_tokens
from llama_jax.align.policy_objectives import GroupedPolicy, Policy, Value
from llama_jax.align.sft import Answers
from llama_jax.model.presets import TINY
from llama_jax.model.weights import abstract_params
from llama_jax.train.next_token import NextToken
from llama_jax.train.step import mean_loss_and_gradient
from tests.comparison import assert_close, assert_trees_close, quick_jit, random_params

V, D, TAU = 11, 6, 0.7
CFG = replace(TINY, vocab_size=V, d_model=D)
POLICY, VALUE = Policy(CFG, clip=0.2, temperature=TAU), Value(CFG, clip=0.2)
GROUPED = GroupedPolicy(CFG, clip=0.2, temperature=TAU, beta=0.3)
RNG = np.random.default_rng(0)
EMBED, HEAD = RNG.standard_normal((V, D)), RNG.standard_normal((D, V))
SCORE, BIAS = RNG.standard_normal((D, 1)), RNG.standard_normal(1)
LENGTHS = ((3, 4), (2, 6), (4, 1))
"""Tokens of the prompt and of the answer of each row."""


def answers(T=12, *, rng=None):
    """Prompts with answers as rows, in the fields of both objectives; garbage where nothing is."""
    rng = rng or np.random.default_rng(1)
    B = len(LENGTHS)
    real = np.random.default_rng(2)  # what counts is the same whatever the garbage
    rows = {
        "tokens": rng.integers(0, V, (B, T)).astype(np.int32),
        "positions": np.zeros((B, T), np.int32),
        "segment_ids": np.zeros((B, T), np.int32),
        "answer": np.zeros((B, T), bool),
    }
    for name in ("old_logp", "ref_logp", "advantages", "old_values", "returns"):
        rows[name] = (1e3 * rng.standard_normal((B, T))).astype(np.float32)
    for b, (prompt, answer) in enumerate(LENGTHS):
        end = prompt + answer
        rows["tokens"][b, :end] = real.integers(0, V, end)
        rows["positions"][b, :end] = np.arange(end)
        rows["segment_ids"][b, :end] = 1
        chosen = slice(prompt - 1, end - 1)
        rows["answer"][b, chosen] = True
        for name in ("old_logp", "ref_logp"):
            rows[name][b, chosen] = real.uniform(-4, -1, answer)
        for name in ("advantages", "old_values", "returns"):
            rows[name][b, chosen] = real.standard_normal(answer)
    return rows


def language(tokens, positions, segment_ids, **_):
    """A bigram model: what a forward pass gives, without one."""
    return jnp.asarray(EMBED, jnp.float32)[tokens], jnp.asarray(HEAD, jnp.float32)


def critic(tokens, positions, segment_ids, **_):
    head = {"score": jnp.asarray(SCORE, jnp.float32), "score_bias": jnp.asarray(BIAS, jnp.float32)}
    return jnp.asarray(EMBED, jnp.float32)[tokens], head


def logprobs(tokens, temperature):
    """Log-probabilities [B,T,V] of the token after each, float64."""
    logits = EMBED[tokens] @ HEAD / temperature
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def chosen_logprobs(rows, temperature):
    """Of token t+1 at index t."""
    found = logprobs(rows["tokens"], temperature)
    return np.take_along_axis(found, np.roll(rows["tokens"], -1, 1)[..., None], 2)[..., 0]


def on_device(rows):
    return {name: jnp.asarray(a) for name, a in rows.items()}


def averages(means):
    return {name: float(m.total) / float(m.count) for name, m in means.items()}


def test_policy_terms_are_those_of_the_formulas():
    rows = answers()
    at = rows["answer"]
    log_ratio = (chosen_logprobs(rows, TAU) - rows["old_logp"])[at]
    ratio, A = np.exp(log_ratio), rows["advantages"][at].astype(np.float64)
    plain, clipped = -A * ratio, -A * np.clip(ratio, 0.8, 1.2)
    p = logprobs(rows["tokens"], TAU)[at]
    expected = {
        "loss": np.maximum(plain, clipped).mean(),
        "clipped": (clipped > plain).mean(),
        "ratio": ratio.mean(),
        "ratio_variance": ((ratio - 1) ** 2).mean(),
        "approx_kl": (ratio - 1 - log_ratio).mean(),
        "entropy": -(np.exp(p) * p).sum(-1).mean(),
    }
    assert 0 < expected["clipped"] < 1
    found = averages(POLICY.terms(language, on_device(rows)))
    assert found == pytest.approx(expected, rel=1e-5)
    batch = on_device(rows)
    loss, means = POLICY.loss(language, batch, POLICY.weights(batch))
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)
    assert "loss" not in means


def test_grouped_terms_are_those_of_the_formulas():
    rows = answers()
    at = rows["answer"]
    logp = chosen_logprobs(rows, TAU)[at]
    old, ref, A = (rows[k][at].astype(np.float64) for k in ("old_logp", "ref_logp", "advantages"))
    ratio, k3 = np.exp(logp - old), np.exp(ref - logp) - 1 - (ref - logp)
    surrogate = np.maximum(-A * ratio, -A * np.clip(ratio, 0.8, 1.2)).mean()
    found = averages(GROUPED.terms(language, on_device(rows)))
    assert found["kl"] == pytest.approx((ratio * k3).mean(), rel=1e-5)
    assert found["loss"] == pytest.approx(surrogate + 0.3 * (ratio * k3).mean(), rel=1e-5)
    plain = averages(POLICY.terms(language, on_device(rows)))
    same = plain.keys() - {"loss"}
    assert {k: found[k] for k in same} == {k: plain[k] for k in same}


@pytest.mark.parametrize("clip", [0.2, None])
def test_value_terms_are_those_of_the_formulas(clip):
    rows = answers()
    at = rows["answer"]
    value = (EMBED[rows["tokens"]] @ SCORE + BIAS)[..., 0][at]
    old, target = (rows[name][at].astype(np.float64) for name in ("old_values", "returns"))
    near = value if clip is None else old + np.clip(value - old, -clip, clip)
    plain, clipped = (value - target) ** 2 / 2, (near - target) ** 2 / 2
    found = averages(Value(CFG, clip).terms(critic, on_device(rows)))
    expected = {"loss": np.maximum(plain, clipped).mean(), "clipped": (clipped > plain).mean()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert (expected["clipped"] > 0) == (clip is not None)


def test_a_policy_that_has_not_moved_has_a_ratio_of_exactly_one():
    rows = answers()
    targets = next_tokens(jnp.asarray(rows["tokens"]))
    found = batch_logprobs(language, on_device(rows), targets, cfg=CFG, temperature=TAU)
    rows["old_logp"] = np.asarray(found.logp)
    found = averages(POLICY.terms(language, on_device(rows)))
    assert found["ratio"] == 1
    assert found["approx_kl"] == found["ratio_variance"] == found["clipped"] == 0
    assert found["loss"] == pytest.approx(-rows["advantages"][rows["answer"]].mean(), rel=1e-5)


def gradient_of(objective, rows, accumulate=1):
    """Loss, averages and gradient of a real model."""
    step = quick_jit(
        lambda params, rows: mean_loss_and_gradient(
            params, rows, objective=objective, accumulate=accumulate
        )
    )
    (loss, means), gradient = step(PARAMS[objective.model.head], rows)
    return float(loss), averages(means), gradient


MODEL = replace(TINY, vocab_size=V, num_layers=1)
PARAMS = {
    head: random_params(abstract_params(replace(MODEL, head=head)))
    for head in ("language", "score")
}
OBJECTIVES = [
    pytest.param(Policy(MODEL, clip=0.2, temperature=TAU), id="policy"),
    pytest.param(GroupedPolicy(MODEL, clip=0.2, temperature=TAU, beta=0.3), id="grouped"),
    pytest.param(Value(replace(MODEL, head="score"), clip=0.2), id="value"),
]


def assert_same_step(found, expected, tolerance=1e-5):
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert found[1] == pytest.approx(expected[1], rel=tolerance, abs=1e-6)
    assert_trees_close(found[2], expected[2], tolerance)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_the_mask_leaves_out_changes_nothing(objective):
    garbage = answers(rng=np.random.default_rng(9))
    for name in ("old_logp", "ref_logp", "advantages", "old_values", "returns"):
        garbage[name][~garbage["answer"]] = np.nan
    expected = gradient_of(objective, answers())
    found = gradient_of(objective, garbage)
    assert found[:2] == expected[:2]
    jax.tree.map(np.testing.assert_array_equal, found[2], expected[2])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_padding_and_packing_change_nothing(objective):
    expected = gradient_of(objective, answers())
    assert_same_step(gradient_of(objective, answers(T=16)), expected)
    apart = answers(T=24)
    packed = {name: np.zeros((1, 24), a.dtype) for name, a in apart.items()}
    start = 0
    for b, lengths in enumerate(LENGTHS):
        length = sum(lengths)
        for name, a in packed.items():
            a[0, start : start + length] = apart[name][b, :length]
        packed["segment_ids"][0, start : start + length] = b + 1
        start += length
    assert_same_step(gradient_of(objective, packed), expected)


@pytest.mark.parametrize(
    "objective",
    [
        OBJECTIVES[0],
        *(pytest.param(*o.values, id=o.id, marks=pytest.mark.slow) for o in OBJECTIVES[1:]),
    ],
)
def test_micro_batches_add_up_to_the_batch(objective):
    """Rows of unequal answers: a mean of the means of micro-batches would be another number."""
    rows = {name: np.concatenate([a, a[:1]]) for name, a in answers().items()}
    rows["advantages"][3:] += 1
    rows["returns"][3:] -= 1
    rows["answer"][3, 4:] = False
    assert_same_step(gradient_of(objective, rows, accumulate=2), gradient_of(objective, rows))


def dialogues():
    """Packed dialogues: two answers in the first row, one in the second, garbage behind."""
    rng = np.random.default_rng(3)
    segment_ids = np.array([[1, 1, 1, 1, 1, 2, 2, 2, 2, 2], [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]])
    loss_mask = np.array([[0, 0, 0, 1, 1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 1, 0, 0, 0, 0]])
    return {
        "tokens": rng.integers(0, V, (2, 10)).astype(np.int32),
        "segment_ids": segment_ids.astype(np.int32),
        "positions": np.zeros((2, 10), np.int32),
        "loss_mask": loss_mask.astype(np.uint8),
    }


def test_answers_are_examined_by_the_formulas():
    rows = dialogues()
    p = logprobs(rows["tokens"], 1.0)
    target = np.roll(rows["tokens"], -1, axis=1)
    at = np.zeros((2, 10), bool)  # of the choices: one before each token that counts
    at[:, :-1] = rows["loss_mask"][:, 1:].astype(bool)
    end = np.zeros((2, 10), bool)  # of the last token of each answer
    end[[0, 0, 1, 1], [3, 8, 2, 4]] = True
    # The second answer of row 0 ends in the last column; a turn of row 1 is one token long.
    right = p.argmax(-1) == target
    chosen = np.take_along_axis(p, target[..., None], 2)[..., 0]
    expected = {
        "loss": -chosen[at].mean(),
        "accuracy": right[at].mean(),
        "entropy": -(np.exp(p) * p).sum(-1)[at].mean(),
        "eos_accuracy": right[end].mean(),
    }
    found = Answers(CFG).examine(language, on_device(rows))
    assert averages(found) == pytest.approx(expected, rel=1e-5)
    assert (float(found["loss"].count), float(found["eos_accuracy"].count)) == (8, 4)


def test_answers_that_are_known_are_all_right():
    """Tokens whose successor is the likeliest: accuracy 1, and 1 at the ends."""
    rows = dialogues()
    successor = logprobs(np.arange(V), 1.0).argmax(-1)
    for t in range(1, 10):
        rows["tokens"][:, t] = successor[rows["tokens"][:, t - 1]]
    found = averages(Answers(CFG).examine(language, on_device(rows)))
    assert found["accuracy"] == found["eos_accuracy"] == 1
    rows["tokens"][0, 4] = (rows["tokens"][0, 4] + 1) % V  # the end of one answer of four
    wrong = averages(Answers(CFG).examine(language, on_device(rows)))
    assert (wrong["accuracy"], wrong["eos_accuracy"]) == (7 / 8, 3 / 4)


def test_fine_tuning_is_next_token_prediction_on_answers():
    """The step of fine-tuning is that of pretraining, bit by bit: only the mask is another."""
    rows = dialogues()
    found, expected = (gradient_of(kind(MODEL), rows) for kind in (Answers, NextToken))
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[2], expected[2])
    examined = Answers(CFG).examine(language, on_device(rows))["loss"]
    batch = on_device(rows)
    loss, _ = NextToken(CFG).loss(language, batch, NextToken(CFG).weights(batch))
    assert_close(float(examined.total / examined.count), float(loss), 1e-6)
