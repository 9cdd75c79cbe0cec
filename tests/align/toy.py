"""A language of three tokens in which every answer can be listed, and a bandit of long answers.

A policy is a table of logits [position, tokens so far, next token], so that it can be any
distribution over answers; an answer has at most three tokens and ends with EOS or is cut off there.
Expectations are sums over the 15 answers, so that what PPO reaches can be compared with what there
is to reach (in NumPy float64 from the formulas).
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llama_jax.align.losses import (
    gae,
    group_advantages,
    kl_terms,
    masked_whiten,
    policy_terms,
    shaped_rewards,
    value_terms,
    varied_groups,
)

V, T, EOS = 3, 3, 0
STATES = V ** (T - 1)


def all_answers():
    """Tokens int [15,T], EOS repeated after the end, and the mask [15,T] of what was chosen."""
    tokens, mask = [], []
    for answer in itertools.product(range(V), repeat=T):
        length = answer.index(EOS) + 1 if EOS in answer else T
        if all(token == EOS for token in answer[length:]):
            tokens.append(answer)
            mask.append([t < length for t in range(T)])
    return np.array(tokens), np.array(mask)


TOKENS, MASK = all_answers()
# The tokens before a position as one number in base V.
SO_FAR = np.array(
    [[sum(y[i] * V ** (t - 1 - i) for i in range(t)) for t in range(T)] for y in TOKENS]
)


def log_policy(logits):
    """log pi(y) of the 15 answers under a table of logits, float64."""
    logits = np.asarray(logits, np.float64)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return (logp[np.arange(T)[None], SO_FAR, TOKENS] * MASK).sum(1)


def objective(logits, reference, scores, beta):
    """J = E_pi[R - beta log(pi/pi0)], exactly."""
    log_pi = log_policy(logits)
    return float(np.exp(log_pi) @ (scores - beta * (log_pi - log_policy(reference))))


def objective_gradient(logits, reference, scores, beta):
    """grad J = E_pi[(R - beta log(pi/pi0)) grad log pi], exactly, [T,STATES,V]."""
    logits, log_pi = np.asarray(logits, np.float64), log_policy(logits)
    policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    gradient = np.zeros(logits.shape)
    for y, weight in enumerate(np.exp(log_pi)):
        gain = scores[y] - beta * (log_pi[y] - log_policy(reference)[y])
        for t in range(T):
            if MASK[y, t]:
                state = SO_FAR[y, t]
                score = np.eye(V)[TOKENS[y, t]] - policy[t, state]
                gradient[t, state] += weight * gain * score
    return gradient


def optimum(reference, scores, beta):
    """The best policy pi0 exp(R/beta) / Z over the 15 answers, and its objective beta log Z."""
    weights = np.exp(log_policy(reference) + scores / beta)
    return weights / weights.sum(), beta * np.log(weights.sum())


def token_logprobs(logits, tokens, so_far):
    """log pi of each token [B,T] under the table, in jax."""
    return jax.nn.log_softmax(logits)[jnp.arange(T)[None], so_far, tokens]


def roll_out(logits, key, rows):
    """Sampled answers: tokens, tokens so far and mask, [rows,T] each."""

    def step(carry, now):
        so_far, alive = carry
        table, key = now
        token = jnp.where(alive, jax.random.categorical(key, table[so_far]), EOS)
        after = so_far * V + token, jnp.logical_and(alive, token != EOS)
        return after, (token, so_far, alive)

    start = jnp.zeros(rows, jnp.int32), jnp.ones(rows, bool)
    _, found = jax.lax.scan(step, start, (logits, jax.random.split(key, T)))
    return tuple(a.T for a in found)


@partial(jax.jit, static_argnames=("beta", "lam", "whiten", "iterations", "rows", "parts"))
def ppo(keys, reference, scores, *, beta, lam, whiten, iterations, rows=512, parts=8):
    """Policy tables [seeds,T,STATES,V] after PPO from the reference, one run for each key.

    As Llama 2 trains: 512 answers an iteration, one update for each mini-batch of 64. scores holds
    the reward of each answer as a table [V,V,V]; `whiten` maps scores [rows] to what is maximised.
    """
    tx = optax.adam(0.02)

    def losses(params, batch):
        tokens, so_far, mask, old_logp, old_values, advantages, returns = batch
        logp = token_logprobs(params["logits"], tokens, so_far)
        values = params["values"][jnp.arange(T)[None], so_far]
        policy = policy_terms(logp, old_logp, advantages, mask, clip=0.2)
        value = value_terms(values, old_values, returns, mask, clip=0.2)
        return jnp.sum(policy + value) / jnp.sum(mask)

    def update(carry, batch):
        params, state = carry
        updates, state = tx.update(jax.grad(losses)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    def iteration(carry, key):
        params, _ = carry
        tokens, so_far, mask = roll_out(params["logits"], key, rows)
        old_logp = token_logprobs(params["logits"], tokens, so_far)
        ref_logp = token_logprobs(reference, tokens, so_far)
        old_values = params["values"][jnp.arange(T)[None], so_far]
        score = whiten(scores[tuple(tokens.T)])
        rewards = shaped_rewards(score, old_logp, ref_logp, mask, beta=beta)
        advantages, returns = gae(rewards, old_values, mask, gamma=1.0, lam=lam)
        arrays = (tokens, so_far, mask, old_logp, old_values)
        arrays += masked_whiten(advantages, mask), returns
        batches = tuple(a.reshape(parts, rows // parts, T) for a in arrays)
        return jax.lax.scan(update, carry, batches)[0], None

    def run(key):
        params = {"logits": reference, "values": jnp.zeros((T, STATES))}
        carry = params, tx.init(params)
        (params, _), _ = jax.lax.scan(iteration, carry, jax.random.split(key, iterations))
        return params["logits"]

    return jax.vmap(run)(keys)


@partial(jax.jit, static_argnames=("beta", "iterations", "prompts", "group", "parts"))
def grpo(keys, reference, scores, *, beta, iterations, prompts=64, group=8, parts=8):
    """Policy tables [seeds,T,STATES,V] after GRPO from the reference, one run for each key.

    All prompts are the same one; answers are drawn and learned from as in `ppo`.
    """
    tx, rows = optax.adam(0.02), prompts * group

    def loss(logits, batch):
        tokens, so_far, mask, old_logp, ref_logp, advantages = batch
        logp = token_logprobs(logits, tokens, so_far)
        policy = policy_terms(logp, old_logp, advantages, mask, clip=0.2)
        kl = kl_terms(logp, old_logp, ref_logp, mask)
        return jnp.sum(policy + beta * kl) / jnp.maximum(jnp.sum(mask), 1)

    def update(carry, batch):
        logits, state = carry
        updates, state = tx.update(jax.grad(loss)(logits, batch), state, logits)
        return (optax.apply_updates(logits, updates), state), None

    def iteration(carry, key):
        tokens, so_far, mask = roll_out(carry[0], key, rows)
        found = scores[tuple(tokens.T)].reshape(prompts, group)
        mask &= jnp.repeat(varied_groups(found), group)[:, None]
        advantages = jnp.broadcast_to(group_advantages(found).reshape(rows, 1), mask.shape)
        old_logp = token_logprobs(carry[0], tokens, so_far)
        arrays = tokens, so_far, mask, old_logp, token_logprobs(reference, tokens, so_far)
        batches = tuple(a.reshape(parts, rows // parts, T) for a in (*arrays, advantages))
        return jax.lax.scan(update, carry, batches)[0], None

    def run(key):
        carry = reference, tx.init(reference)
        return jax.lax.scan(iteration, carry, jax.random.split(key, iterations))[0][0]

    return jax.vmap(run)(keys)


def table_of(scores):
    """Scores of the 15 answers as a table [V,V,V] to look sampled answers up in."""
    table = np.zeros((V,) * T)
    table[tuple(TOKENS.T)] = scores
    return jnp.asarray(table, jnp.float32)


def bandit(length_bonus, steps):
    """Mean proxy and gold score of each step of a policy that follows the proxy's gradient.

    Answers have lengths 0 to 30; their quality is best at 10, and the proxy adds length_bonus for
    each token of it. Steps of natural gradient from mostly short answers, without a KL penalty.
    """
    length = np.arange(31)
    quality = 5 - 0.05 * (length - 10.0) ** 2
    proxy = quality + length_bonus * length
    log_policy = -0.5 * length
    curves = []
    for _ in range(steps):
        policy = np.exp(log_policy - log_policy.max())
        policy /= policy.sum()
        curves.append((policy @ proxy, policy @ quality))
        log_policy = log_policy + 0.01 * proxy
    return [list(curve) for curve in zip(*curves, strict=True)]
