"""Small models as folders on the disk, for the tests of whole conversions."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.checkpoint import save_model
from llama_jax.config import ModelConfig
from llama_jax.config_file import model_json
from llama_jax.data.corpora.tales import story
from llama_jax.data.tokenizer import Tokenizer, train_tokenizer
from llama_jax.model.weights import abstract_params
from tests.model.small import SMALL

VOCAB_SIZE = 330
BASE = replace(SMALL, vocab_size=VOCAB_SIZE, head_dim=6, rope_theta=5000.0)
CONFIGS = {
    "grouped": BASE,
    "grouped_tied": replace(BASE, tie_embeddings=True),
    "multi_head": replace(BASE, num_kv_heads=4),
    "multi_head_tied": replace(BASE, num_kv_heads=4, tie_embeddings=True),
}
assert BASE.d_model == BASE.num_heads * BASE.head_dim  # as every other format needs


@cache
def tokenizer() -> Tokenizer:
    return train_tokenizer((story(i) for i in range(100)), VOCAB_SIZE)


def params_of(config: ModelConfig, seed: int = 0) -> dict:
    """Random parameters, norms near 1, in the type of the configuration."""
    rng = np.random.default_rng(seed)

    def draw(path, a):
        noise = rng.standard_normal(a.shape, np.float32)
        value = 1 + 0.3 * noise if "norm" in path[-1].key else 0.3 * noise
        return jnp.asarray(value).astype(a.dtype)

    return jax.tree.map_with_path(draw, abstract_params(config))


def save(folder: Path, config: ModelConfig, params: dict | None = None) -> Path:
    """A model folder of ours, as training writes it."""
    params = params_of(config) if params is None else params
    save_model(folder, params, model_json(config), tokenizer().model_bytes, {"made": "in a test"})
    return folder


def same_bits(a, b) -> bool:
    """Whether two trees have the same structure, types, shapes and bits."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
