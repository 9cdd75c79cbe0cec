"""Models that are only read: blocks, refusals, and log-probabilities that are the sampler's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import checkpoint
from llama_jax.align.scoring import (
    RewardModel,
    Scorer,
    open_reward_model,
    rows_of,
    token_logprobs_of,
    values_of,
)
from llama_jax.config import InputError, MeshConfig
from llama_jax.config_file import model_json
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.infer.rollout import sample_answers
from llama_jax.infer.samples import batch_rows
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.model.llama import apply, init_params
from llama_jax.model.presets import TINY
from llama_jax.model.weights import abstract_params, map_weights
from llama_jax.models import params_digest
from llama_jax.parallel.mesh import make_mesh
from llama_jax.parallel.rules import named_sharding
from tests.comparison import random_params

LANGUAGE = replace(TINY, vocab_size=320, num_layers=1)
REWARD = replace(LANGUAGE, head="score")
PARAMS = {cfg.head: random_params(abstract_params(cfg)) for cfg in (LANGUAGE, REWARD)}
T = 12
TEXTS = [list(range(5, 5 + length)) for length in (3, 12, 7, 1, 9, 4, 5)]


def reward_model(block):
    return RewardModel("rm", "digest", Scorer(REWARD, PARAMS["score"], block))


def test_rows_hold_one_text_each():
    rows = rows_of([[7, 8], [9, 10, 11]], 4)
    assert rows["tokens"].tolist() == [[7, 8, 0, 0], [9, 10, 11, 0]]
    assert rows["segment_ids"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert rows["positions"][:, :2].tolist() == [[0, 1]] * 2
    assert {a.dtype for a in rows.values()} == {np.dtype(np.int32)}


@pytest.fixture(scope="module")
def scores():
    """Of all texts in one block."""
    found = reward_model(len(TEXTS)).scores(rows_of(TEXTS, T))
    assert found.shape == (len(TEXTS),)
    assert found.dtype == np.float32
    return found


@pytest.mark.parametrize("block", [1, 3, 10])
def test_blocks_of_any_size_give_the_same_scores(scores, block):
    """Of 3 the last block is filled up; of 10 the only one is."""
    found = reward_model(block).scores(rows_of(TEXTS, T))
    np.testing.assert_allclose(found, scores, atol=1e-5)


def test_a_score_is_that_of_a_text_by_itself(scores):
    """Neither padding nor neighbours count."""
    (alone,) = reward_model(1).scores(rows_of(TEXTS[:1], len(TEXTS[0])))
    assert alone == pytest.approx(scores[0], abs=1e-5)


def test_blocks_on_a_mesh_give_the_same_scores(scores):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = map_weights(lambda w: named_sharding(w.axes, mesh, w.shape), REWARD)
    with jax.set_mesh(mesh):
        params = jax.device_put(PARAMS["score"], shardings)
        # Three rows are no multiple of the four devices that split them.
        found = RewardModel("rm", "d", Scorer(REWARD, params, 3)).scores(rows_of(TEXTS, T))
        assert params_digest(params) == params_digest(PARAMS["score"])
    np.testing.assert_allclose(found, scores, atol=1e-5)


def test_a_digest_tells_weights_apart():
    changed = PARAMS["score"] | {"score_bias": PARAMS["score"]["score_bias"] + 1e-6}
    assert len(params_digest(changed)) == 64
    assert params_digest(changed) != params_digest(PARAMS["score"])


def test_values_are_the_head_at_every_position():
    rows = rows_of(TEXTS, T)
    values = values_of(Scorer(REWARD, PARAMS["score"], 4), rows)
    last = [len(text) - 1 for text in TEXTS]
    np.testing.assert_allclose(
        values[np.arange(len(TEXTS)), last], reward_model(7).scores(rows), atol=1e-5
    )
    assert values.shape == (len(TEXTS), T)


def test_log_probabilities_are_those_of_the_full_distribution():
    rows, tau = rows_of(TEXTS, T), 0.7
    logp, entropy = token_logprobs_of(
        Scorer(LANGUAGE, PARAMS["language"], 4), rows, temperature=tau
    )
    inputs = {name: jnp.asarray(rows[name]) for name in ("positions", "segment_ids")}
    logits = apply(PARAMS["language"], jnp.asarray(rows["tokens"]), config=LANGUAGE, **inputs)
    logits = np.asarray(logits, np.float64) / tau
    p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    inside = rows["segment_ids"][:, 1:] > 0
    chosen = np.take_along_axis(p[:, :-1], rows["tokens"][:, 1:, None], 2)[..., 0]
    np.testing.assert_allclose(logp[:, :-1][inside], chosen[inside], atol=1e-5)
    np.testing.assert_allclose(
        entropy[:, :-1][inside], -(np.exp(p) * p).sum(-1)[:, :-1][inside], atol=1e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_that_the_sampler_drew_with(temperature):
    prompts = [[1, 5, 9], [1, 7], [1, *range(20, 30)]]
    samples = sample_answers(
        PARAMS["language"],
        prompts,
        SamplingParams(max_new_tokens=8, temperature=temperature, stop_ids=tuple(range(40, 60))),
        config=LANGUAGE,
        n=2,
        seeds=[(0, p) for p in range(3)],
        wave_rows=4,
    )
    batch = batch_rows(prompts, samples, 20)
    segment_ids = batch.valid.astype(np.int32)
    rows = {
        "tokens": batch.tokens,
        "segment_ids": segment_ids,
        "positions": np.where(batch.valid, np.arange(20)[None], 0).astype(np.int32),
    }
    scorer = Scorer(LANGUAGE, PARAMS["language"], 6)
    logp, _ = token_logprobs_of(scorer, rows, temperature=temperature)
    assert np.ptp(samples.length) > 0  # some answers stopped
    apart = np.abs(logp - batch.logp)[batch.answer]
    assert apart.max() < 1e-4
    other, _ = token_logprobs_of(scorer, rows, temperature=temperature + 0.1)
    assert np.abs(other - batch.logp)[batch.answer].max() > 1e-2


TOKENIZER = train_tokenizer(["Can a cat eat corn? No.", "Yes, a dog eats beans."] * 20, 300)
OTHER = train_tokenizer(["What is the time? Half past nine."] * 20, 300)


@pytest.fixture
def save(tmp_path):
    """Writes a model folder; its path."""

    def write(config, tokenizer=TOKENIZER):
        params = init_params(jax.random.key(0), config)
        path = tmp_path / "model"
        checkpoint.save_model(path, params, model_json(config), tokenizer.model_bytes, {})
        return str(path)

    return write


def test_a_reward_model_is_read_with_its_digest(save):
    path = save(REWARD)
    opened = open_reward_model(path, TOKENIZER, seq_len=T, block=4)
    assert (opened.path, opened.scorer.block) == (path, 4)
    assert opened.digest == params_digest(init_params(jax.random.key(0), REWARD))


@pytest.mark.parametrize(
    ("config", "tokenizer", "message"),
    [
        (LANGUAGE, TOKENIZER, "is not a reward model: it has no score head"),
        (REWARD, OTHER, "has a different tokenizer (fingerprint "),
        (replace(REWARD, max_seq_len=8), TOKENIZER, "has a context of 8 tokens, less than seq_len"),
    ],
)
def test_what_is_no_reward_model_for_these_rows_is_refused(save, config, tokenizer, message):
    path = save(config, tokenizer)
    with pytest.raises(InputError) as error:
        open_reward_model(path, TOKENIZER, seq_len=T, block=4)
    assert message in str(error.value)
    assert path in str(error.value)
    assert "\n" not in str(error.value)
