"""When a policy's training ends: without progress, far from its reference, or by wrong numbers."""

from dataclasses import replace
from pathlib import Path

import pytest

from llama_jax.align.limits import check_sampled, check_updated, check_value, why_stop
from llama_jax.train.report import TrainingError
from tests.align.tiny_chat import TinyChat

CONFIG = TinyChat(Path("unused")).ppo(heldout="rm", patience=3, max_kl=10.0, value_patience=2)

GOOD = {"step": 1, "kl/answer": 1.0, "drift/mean": 1e-6, "drift/max": 1e-5, "policy/loss": 0.1,
        "policy/ratio_first": 1.0, "answer/truncated": 0.1,
        "value/explained_variance": 0.5}  # fmt: skip


def settings(**changes):
    return replace(CONFIG, **changes)


def curve(*scores, proxy=None, name="heldout/score"):
    """Metrics of iterations of which every other one was examined."""
    lines = []
    for i, score in enumerate(scores):
        lines.append({**GOOD, "step": 2 * i + 1})
        more = {name: score, "heldout/proxy": score if proxy is None else proxy[i]}
        lines.append({**GOOD, "step": 2 * i + 2, **more})
    return lines


def test_a_run_ends_when_the_held_out_score_had_its_best_long_ago():
    assert why_stop(settings(), curve(1.0, 3.0, 2.0, 2.5)) is None
    assert why_stop(settings(), curve(1.0, 3.0, 2.0, 2.5, 2.9)) == (
        "heldout/score had its best, 3.000, 3 evaluations ago"
    )
    assert why_stop(settings(), curve(1.0, 3.0, 2.0, 2.5, 3.1)) is None
    assert why_stop(settings(patience=0), curve(3.0, *[1.0] * 9)) is None
    assert why_stop(settings(), []) is None


def test_without_a_held_out_model_the_judges_decide():
    lines = curve(3.0, 1.0, 1.0, 1.0, name="heldout/proxy")
    assert "heldout/proxy had its best" in why_stop(settings(heldout=None), lines)


def test_a_score_that_rises_alone_is_named():
    falling = (2.0, 3.0, 2.0, 1.0, 0.5)
    found = why_stop(settings(), curve(*falling, proxy=(1.0, 2.0, 3.0, 4.0, 5.0)))
    assert found.endswith("while the score that it learns from rose")


def test_a_run_ends_far_from_its_reference():
    lines = [GOOD, {**GOOD, "kl/answer": 10.5}]
    assert why_stop(settings(), lines) == "KL of an answer is 10.50 nats, above max_kl=10.0"
    assert why_stop(settings(max_kl=0.0), lines) is None
    assert why_stop(settings(), lines[::-1]) is None  # only where it is now counts


def test_a_run_ends_when_answers_no_longer_end():
    lines = [GOOD, {**GOOD, "answer/truncated": 0.25}]
    assert why_stop(settings(max_truncated=0.2), lines) == (
        "25% of the answers were cut at max_new_tokens=12, more than max_truncated=0.2 and the 10% "
        "at first: a larger --max-truncated goes on"
    )
    assert why_stop(settings(max_truncated=0.2), lines[1:]) is None  # no worse than at first
    assert why_stop(settings(max_truncated=0.25), lines) is None
    assert why_stop(settings(max_truncated=0.0), lines) is None


def test_sound_numbers_pass():
    check_sampled(settings(), 1, GOOD)
    check_updated(settings(), [GOOD, GOOD])
    check_updated(settings(), [{k: v for k, v in GOOD.items() if k != "policy/ratio_first"}])


def test_drift_of_the_sampler_is_an_error_with_its_values():
    with pytest.raises(TrainingError, match=r"iteration 4: .* 0\.0600 nats apart .*0\.05"):
        check_sampled(settings(), 4, {**GOOD, "drift/mean": 0.06})
    check_sampled(settings(max_drift=0.1), 4, {**GOOD, "drift/mean": 0.06})


@pytest.mark.parametrize("ratio", [1 + 2e-5, 1 - 2e-5])
def test_a_first_ratio_other_than_one_is_an_error_with_its_value(ratio):
    lines = [GOOD, {**GOOD, "step": 7, "policy/ratio_first": ratio}]
    with pytest.raises(TrainingError, match=rf"iteration 7: .* is {ratio:.7f} and not 1"):
        check_updated(settings(), lines)
    check_updated(settings(max_ratio_error=1e-4), lines)


def test_a_value_that_explains_nothing_for_long_is_an_error():
    bad = {**GOOD, "value/explained_variance": -1.5}
    check_value(settings(), [GOOD, bad])
    check_value(settings(), [bad, GOOD])
    check_value(settings(), [bad])
    check_value(settings(value_patience=0), [bad] * 9)
    with pytest.raises(TrainingError, match=r"below -1 for 2 iterations, now -1\.50"):
        check_value(settings(), [GOOD, bad, bad])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_an_error_with_its_name(value):
    with pytest.raises(TrainingError, match=f"iteration 3: score/mean is {value}"):
        check_sampled(settings(), 3, {**GOOD, "score/mean": value})
    with pytest.raises(TrainingError, match=f"iteration 1: policy/loss is {value}"):
        check_updated(settings(), [{**GOOD, "policy/loss": value}])
