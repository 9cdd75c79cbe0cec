from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.config import MeshConfig
from llama_jax.ops.token_logprobs import token_logprobs
from llama_jax.parallel.fsdp import by_positions, by_rows
from llama_jax.parallel.mesh import make_mesh
from llama_jax.parallel.rules import named_sharding
from tests.comparison import assert_close, epsilon, quick_jit

B, T, D, V = 4, 12, 8, 40


def draw(dtype=jnp.float32, seed=0):
    """x, head, targets and a cotangent of the log-probabilities."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((B, T, D)), dtype)
    head = jnp.asarray(rng.standard_normal((D, V)), dtype)
    targets = jnp.asarray(rng.integers(0, V, (B, T)), jnp.int32)
    return x, head, targets, jnp.asarray(rng.standard_normal((B, T)), jnp.float32)


def weighted(x, head, targets, g, *, temperature, chunk):
    """sum g logp, and what it is made of."""
    found = token_logprobs(x, head, targets, temperature=temperature, chunk=chunk)
    return jnp.sum(g * found[0]), found


@cache
def values_and_gradients(temperature, chunk, argnums=(0, 1)):
    """Compiled: (x, head, targets, g) -> (sum, (logp, entropy, best)), gradients."""
    loss = partial(weighted, temperature=temperature, chunk=chunk)
    return quick_jit(jax.value_and_grad(loss, argnums=argnums, has_aux=True))


def exact(x, head, targets, g, temperature):
    """In float64, row by row: log-probabilities, entropies, and the gradients by hand."""
    x, head, g = (np.asarray(a, np.float64) for a in (x, head, g))
    logp, entropy, best = np.zeros((3, B, T))
    d_x, d_head = np.zeros(x.shape), np.zeros(head.shape)
    for b in range(B):
        for t in range(T):
            weights = np.exp(x[b, t] @ head / temperature)
            p, y = weights / weights.sum(), int(targets[b, t])
            logp[b, t], entropy[b, t] = np.log(p[y]), -(p * np.log(p)).sum()
            best[b, t] = np.log(p.max())
            d_logits = g[b, t] * (np.eye(V)[y] - p) / temperature
            d_x[b, t] = head @ d_logits
            d_head += np.outer(x[b, t], d_logits)
    return logp, entropy, best, d_x, d_head


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_agree_with_float64(temperature, dtype):
    arrays = draw(dtype)
    (_, found), gradients = values_and_gradients(temperature, 4)(*arrays)
    *values, d_x, d_head = exact(*arrays, temperature)
    for actual, wanted in zip(found, values, strict=True):
        assert actual.dtype == jnp.float32
        assert_close(actual, wanted, 3e-6)  # of logits up to 8
    tolerance = 1e-6 if dtype == jnp.float32 else 2 * epsilon(dtype)
    for actual, wanted in zip(gradients, (d_x, d_head), strict=True):
        assert actual.dtype == dtype
        assert_close(actual, wanted, tolerance)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("argnum", [0, 1], ids=["a frozen head", "a frozen trunk"])
def test_what_is_trained_alone_has_the_same_gradient(argnum, dtype):
    arrays = draw(dtype, seed=1)
    _, alone = values_and_gradients(0.7, 4, argnum)(*arrays)
    tolerance = 1e-6 if dtype == jnp.float32 else 2 * epsilon(dtype)
    assert alone.dtype == dtype
    assert_close(alone, exact(*arrays, 0.7)[3 + argnum], tolerance)


@settings(deadline=None, max_examples=8)
@given(chunk=st.sampled_from([1, 3, 6, 12]), seed=st.integers(0, 100), frozen=st.booleans())
def test_the_chunk_changes_nothing(chunk, seed, frozen):
    arrays, argnums = draw(seed=seed), 0 if frozen else (0, 1)
    (_, values), gradients = values_and_gradients(0.7, chunk, argnums)(*arrays)
    (_, expected), expected_gradients = values_and_gradients(0.7, 4, argnums)(*arrays)
    for actual, wanted in zip(
        jax.tree.leaves((values, gradients)),
        jax.tree.leaves((expected, expected_gradients)),
        strict=True,
    ):
        assert_close(actual, wanted, 1e-6)


def test_without_a_gradient_and_under_remat_the_numbers_are_the_same():
    arrays = draw()
    loss = partial(weighted, temperature=0.7, chunk=4)
    (_, expected), expected_gradients = values_and_gradients(0.7, 4)(*arrays)
    _, alone = quick_jit(loss)(*arrays)
    remat = quick_jit(jax.grad(jax.checkpoint(loss), argnums=(0, 1), has_aux=True))
    gradients, _ = remat(*arrays)
    for actual, wanted in zip((*alone, *gradients), (*expected, *expected_gradients), strict=True):
        assert_close(actual, wanted, 1e-6)


def test_a_token_without_a_cotangent_has_no_gradient():
    x, head, targets, g = draw()
    silent = jnp.arange(T)[None] % 3 == jnp.arange(B)[:, None] % 3
    g = jnp.where(silent, 0, g)
    other = jnp.where(silent, (targets + 1) % V, targets)
    louder = jnp.where(silent[..., None], 100 * x, x)
    for argnums in ((0, 1), 0):
        _, gradients = values_and_gradients(1.0, 4, argnums)(x, head, targets, g)
        _, same = values_and_gradients(1.0, 4, argnums)(louder, head, other, g)
        for actual, wanted in zip(jax.tree.leaves(same), jax.tree.leaves(gradients), strict=True):
            np.testing.assert_array_equal(actual, wanted)
        assert not np.asarray(jax.tree.leaves(gradients)[0])[np.asarray(silent)].any()


@pytest.mark.parametrize("which", [1, 2], ids=["entropy", "best"])
def test_no_gradient_goes_through_measurements(which):
    x, head, targets, _ = draw()

    def entropy(x, head):
        return jnp.sum(token_logprobs(x, head, targets, temperature=1.0, chunk=4)[which])

    for gradient in jax.grad(entropy, argnums=(0, 1))(x, head):
        assert not np.asarray(gradient).any()


def test_huge_logits_stay_finite():
    x, head, targets, g = draw()
    (_, values), gradients = values_and_gradients(1.0, 4)(1e4 * x, head, targets, g)
    assert all(np.isfinite(a).all() for a in (*values, *gradients))
    assert float(jnp.min(values[1])) >= 0


def equations(jaxpr, times=1):
    """Every equation of a jaxpr, inner ones too, and how often it runs."""
    for eqn in jaxpr.eqns:
        yield eqn, times
        inside = times * eqn.params.get("length", 1)
        for value in eqn.params.values():
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr, inside)
            elif hasattr(value, "eqns"):
                yield from equations(value, inside)


@pytest.mark.parametrize(
    ("argnums", "products"), [(None, 1), ((0, 1), 4), (0, 2)], ids=["value", "both", "frozen head"]
)
def test_products_with_the_head_are_few_and_logits_are_never_whole(argnums, products):
    arrays = draw()
    loss = partial(weighted, temperature=0.7, chunk=4)
    run = loss if argnums is None else jax.grad(loss, argnums=argnums, has_aux=True)
    found = list(equations(jax.make_jaxpr(run)(*arrays).jaxpr))
    assert max(v.aval.size for eqn, _ in found for v in eqn.outvars) <= B * 4 * V
    dots = [times for eqn, times in found if eqn.primitive.name == "dot_general"]
    assert sum(dots) == products * (T // 4)


def test_an_entropy_that_nobody_reads_is_not_computed():
    x, head, targets, _ = draw()
    run = partial(token_logprobs, temperature=1.0, chunk=4)

    def exponentials(f):
        return jax.jit(f).lower(x, head, targets).compile().as_text().count("exponential(")

    assert exponentials(lambda *a: run(*a)[0]) < exponentials(run)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"fsdp": 2, "sequence": 2, "tensor": 2}], ids=str)
def test_a_mesh_changes_nothing(axes, frozen):
    """As a training step calls it: rows and positions by device, the vocabulary by tensor."""
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((8, T, D)), jnp.float32)
    _, head, _, _ = draw()
    targets = jnp.asarray(rng.integers(0, V, (8, T)), jnp.int32)
    g = jnp.asarray(rng.standard_normal((8, T)), jnp.float32)

    def logprobs(w, x, targets):
        head = jax.lax.stop_gradient(w["head"]) if frozen else w["head"]
        return token_logprobs(x, head, targets, temperature=0.7, chunk=2)

    def loss(x, head, targets, g):
        table = {"head": ("embed", "vocab")}
        run = partial(by_positions, logprobs)
        found = by_rows(run, {"head": head}, table, x, targets)
        return jnp.sum(g * found[0]), found

    run = jax.value_and_grad(loss, argnums=0 if frozen else (0, 1), has_aux=True)
    expected = quick_jit(run)(x, head, targets, g)
    mesh = make_mesh(MeshConfig(**{"fsdp": 1, **axes}))
    rows = named_sharding(("batch", "seq"), mesh)
    placed = [jax.device_put(a, rows) for a in (x, targets, g)]
    placed.insert(1, jax.device_put(head, named_sharding(("embed", "vocab"), mesh)))
    with jax.set_mesh(mesh):
        found = quick_jit(run)(*placed)
    for actual, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert_close(actual, wanted, 1e-5)


def test_what_does_not_fit_is_refused():
    x, head, targets, _ = draw()
    with pytest.raises(ValueError, match="T=12 must be divisible by chunk=5"):
        token_logprobs(x, head, targets, temperature=1.0, chunk=5)
    with pytest.raises(ValueError, match="x and head need one dtype"):
        token_logprobs(x, head.astype(jnp.bfloat16), targets, temperature=1.0, chunk=4)
    with pytest.raises(ValueError, match=r"temperature=0.0 must be positive"):
        token_logprobs(x, head, targets, temperature=0.0, chunk=4)
