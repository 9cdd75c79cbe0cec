"""From answers to advantages, the whole of it, against NumPy float64 written from the formulas."""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.align import experience
from llama_jax.align.experience import make_experience, make_groups, next_scale
from llama_jax.align.losses import score_scale
from llama_jax.align.rewards import Judges, Scores, score_answers
from llama_jax.align.scoring import RewardModel, Scorer
from tests.align.tiny_chat import MODEL, TinyChat

R, T = 6, 10
THRESHOLD = np.log(0.15 / 0.85)
RNG = np.random.default_rng(0)
HELP, SAFE = (RNG.standard_normal(R) * 3).astype(np.float32), RNG.standard_normal(R) * 2
SAFE = np.where(np.arange(R) == 3, -1.8, SAFE).astype(np.float32)  # just under the threshold
IS_SAFETY = np.array([True, False, False, False, False, True])
STOPPED = np.array([True, True, False, True, True, False])
SPANS = [(2, 6), (1, 2), (3, 9), (0, 4), (4, 5), (2, 9)]
"""First and one past the last choice of each row's answer."""
ANSWER = np.array([[a <= t < b for t in range(T)] for a, b in SPANS])
OLD, REF, VALUE, SAMPLED = RNG.standard_normal((4, R, T)).astype(np.float32)
ENTROPY = RNG.random((R, T)).astype(np.float32)


CONFIG = TinyChat(Path("unused")).ppo(temperature=0.8, beta=0.05, gamma=0.9, lam=0.8)
POLICY, REFERENCE, CRITIC = (Scorer(MODEL, name, 1) for name in ("policy", "reference", "value"))


class Judge(RewardModel):
    """A reward model that has made up its mind."""

    def __init__(self, scores, digest="d"):
        super().__init__("rm", digest, POLICY)
        self.__dict__["said"] = scores

    def scores(self, rows):
        return self.said


@pytest.fixture
def run(monkeypatch):
    """`make_experience` of models that say what is above, outside answers anything."""

    def logprobs(model, rows, *, temperature):
        assert temperature == 0.8
        return {"policy": (OLD, ENTROPY), "reference": (REF, ENTROPY + 1)}[model.params]

    def values(model, rows):
        return {"value": VALUE}[model.params]

    monkeypatch.setattr(experience, "token_logprobs_of", logprobs)
    monkeypatch.setattr(experience, "values_of", values)

    def make(**changes):
        config = replace(CONFIG, **changes)
        scores = score_answers(Judges(Judge(HELP), Judge(SAFE)), {}, IS_SAFETY)
        scale = next_scale(config, score_scale(jnp.asarray(HELP)), scores.combined)
        rows = {"answer": ANSWER, "sampler_logp": SAMPLED, "tokens": np.arange(R)}
        return make_experience(
            config, rows=rows, scores=scores, scale=scale, stopped=STOPPED,
            policy=POLICY, reference=REFERENCE, value=CRITIC,
        )  # fmt: skip

    return make


def by_hand(*, beta=0.05, gamma=0.9, lam=0.8, penalty=1.0, others=()):
    """R_c, R~, shaped rewards, GAE and whitening, one number after another in float64."""
    old, ref, value = (a.astype(np.float64) for a in (OLD, REF, VALUE))
    score = [
        s if asked or s < THRESHOLD else h
        for s, h, asked in zip(SAFE, HELP, IS_SAFETY, strict=True)
    ]
    score = np.array(score, np.float64)
    seen = np.concatenate([score, np.asarray(others, np.float64)])
    whitened = (score - seen.mean()) / seen.std() - penalty * ~STOPPED
    advantages, returns = np.zeros((R, T)), np.zeros((R, T))
    for r, (first, end) in enumerate(SPANS):
        after = 0.0
        for t in reversed(range(first, end)):
            reward = -beta * (old[r, t] - ref[r, t]) + (whitened[r] if t == end - 1 else 0)
            next_value = value[r, t + 1] if t + 1 < end else 0.0
            after = reward + gamma * next_value - value[r, t] + gamma * lam * after
            advantages[r, t], returns[r, t] = after, after + value[r, t]
    raw = advantages[ANSWER]
    advantages[ANSWER] = (raw - raw.mean()) / np.sqrt(raw.var() + 1e-8)
    return score, seen, whitened, advantages, returns


def test_the_whole_pipeline_is_that_of_the_formulas(run):
    made, metrics = run()
    score, _, whitened, advantages, returns = by_hand()
    np.testing.assert_allclose(made["advantages"], advantages, atol=2e-6)
    np.testing.assert_allclose(made["returns"], returns, atol=2e-6)
    np.testing.assert_array_equal(made["old_logp"], np.where(ANSWER, OLD, 0))
    np.testing.assert_array_equal(made["old_values"], np.where(ANSWER, VALUE, 0))
    np.testing.assert_array_equal(made["tokens"], np.arange(R))  # what rows hold is kept
    log_ratio = np.where(ANSWER, OLD.astype(np.float64) - REF, 0)
    k3 = np.where(ANSWER, np.exp(-log_ratio) - 1 + log_ratio, 0)
    apart = np.abs(OLD - SAMPLED)[ANSWER]
    residual = (returns - VALUE)[ANSWER]
    expected = {
        "score/mean": score.mean(),
        "score/scale_mean": score.mean(),
        "score/scale_std": score.std(),
        "score/helpfulness": HELP.mean(),
        "score/helpfulness_p5": np.percentile(HELP, 5),
        "score/helpfulness_p95": np.percentile(HELP, 95),
        "score/safety": SAFE.mean(),
        "score/safety_p5": np.percentile(SAFE, 5),
        "score/safety_p95": np.percentile(SAFE, 95),
        "score/by_safety": np.mean(IS_SAFETY | (SAFE < THRESHOLD)),
        "score/unsafe": np.mean(SAFE < THRESHOLD),
        "score/whitened": whitened.mean(),
        "score/whitened_truncated": whitened[~STOPPED].mean(),
        "kl/answer": log_ratio.sum(1).mean(),
        "kl/answer_k3": k3.sum(1).mean(),
        "kl/token": log_ratio.sum() / ANSWER.sum(),
        "kl/token_k3": k3.sum() / ANSWER.sum(),
        "policy/entropy_sampled": ENTROPY[ANSWER].mean(),
        "value/explained_variance": 1 - residual.var() / returns[ANSWER].var(),
        "value/return": returns[ANSWER].mean(),
        "answer/tokens": ANSWER.sum(1).mean(),
        "answer/truncated": np.mean(~STOPPED),
        "answer/length_score_correlation": np.corrcoef(ANSWER.sum(1), score)[0, 1],
        "drift/mean": apart.mean(),
        "drift/max": apart.max(),
    }
    assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_both_branches_of_the_rule_were_taken():
    """The test above would not see a wrong rule otherwise."""
    score = by_hand()[0]
    assert {*np.flatnonzero(score == SAFE)} >= {0, 3, 5}
    assert (score != SAFE).any()


def test_a_running_scale_is_that_of_all_scores_so_far(run):
    made, metrics = run(score_scale="running")
    _, seen, _, advantages, _ = by_hand(others=HELP)  # the scores before, in the fixture
    np.testing.assert_allclose(made["advantages"], advantages, atol=2e-6)
    assert metrics["score/scale_mean"] == pytest.approx(seen.mean(), rel=1e-5)
    assert metrics["score/scale_std"] == pytest.approx(seen.std(), rel=1e-5)


def test_answers_that_were_cut_off_may_keep_their_score(run):
    made, _ = run(truncated="keep")
    np.testing.assert_allclose(made["returns"], by_hand(penalty=0.0)[-1], atol=2e-6)


def test_what_stands_outside_answers_changes_nothing(run, monkeypatch):
    expected, _ = run()
    for name in ("OLD", "REF", "VALUE", "SAMPLED"):
        garbage = np.where(ANSWER, globals()[name], np.nan).astype(np.float32)
        monkeypatch.setitem(globals(), name, garbage)
    found, metrics = run()
    for name in ("advantages", "returns", "old_logp", "old_values"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert all(np.isfinite(value) for value in metrics.values())


def test_one_model_alone_judges_all():
    scores = score_answers(Judges(Judge(HELP), None), {}, IS_SAFETY)
    np.testing.assert_array_equal(scores.combined, HELP)
    assert scores.safety is None
    assert scores.by_safety is None


def test_answers_that_all_score_the_same_have_no_advantage_over_each_other(run, monkeypatch):
    monkeypatch.setitem(globals(), "HELP", np.full(R, 2.5, np.float32))
    monkeypatch.setitem(globals(), "SAFE", np.full(R, 2.5, np.float32))
    made, metrics = run(truncated="keep", beta=0.0)
    assert metrics["score/whitened"] == metrics["score/scale_std"] == 0
    assert np.isfinite(made["advantages"]).all()


def test_the_digest_names_the_models_that_score():
    one, other = Judge(HELP, "a" * 64), Judge(SAFE, "b" * 64)
    digests = {
        Judges(one, other).digest(), Judges(other, one).digest(), Judges(one, None).digest()
    }  # fmt: skip
    assert len(digests) == 3


GROUPS = np.array([[1, 0, 0.5], [2, 2, 2]], np.float32)
"""Rewards of two groups of three answers, the second without any difference."""


@pytest.mark.parametrize("truncated", ["keep", "mask"])
def test_groups_are_those_of_the_formulas(run, truncated):
    """(r - mean) / (std + 1e-6) with n - 1; a group without differences is counted and masked."""
    config = TinyChat(Path("unused")).grpo(
        temperature=0.8, group=3, batch_size=6, minibatch=6, truncated=truncated
    )
    rows = {"answer": ANSWER, "sampler_logp": SAMPLED, "tokens": np.arange(R)}
    made, metrics = make_groups(
        config, rows=rows, scores=Scores(GROUPS.reshape(-1)), stopped=STOPPED,
        policy=POLICY, reference=REFERENCE,
    )  # fmt: skip
    first = GROUPS[0].astype(np.float64)
    std = np.sqrt(((first - first.mean()) ** 2).sum() / 2)
    advantage = [*(first - first.mean()) / (std + 1e-6), 0, 0, 0]
    learned = ANSWER & np.array([True] * 3 + [False] * 3)[:, None]
    if truncated == "mask":
        assert not STOPPED[2]
        learned[2] = False
    np.testing.assert_array_equal(made["answer"], learned)
    expected = np.where(learned, np.array(advantage)[:, None], 0)
    np.testing.assert_allclose(made["advantages"], expected, atol=1e-6)
    np.testing.assert_array_equal(made["old_logp"], np.where(learned, OLD, 0))
    np.testing.assert_array_equal(made["ref_logp"], np.where(learned, REF, 0))
    np.testing.assert_array_equal(made["tokens"], np.arange(R))
    log_ratio = np.where(ANSWER, OLD.astype(np.float64) - REF, 0)
    wanted = {
        "score/mean": GROUPS.mean(),
        "group/flat": 1,
        "group/flat_share": 0.5,
        "group/std": std / 2,
        "group/best": 1.5,
        "group/learned_tokens": learned.sum(),
        "kl/answer": log_ratio.sum(1).mean(),  # of all answers, also of those that teach nothing
    }
    assert {k: metrics[k] for k in wanted} == pytest.approx(wanted, rel=1e-5)
