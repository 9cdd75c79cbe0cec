"""Random models small enough to convert in a test, in memory and as folders on the disk."""

import functools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from llama_jax.checkpoint import save_model
from llama_jax.config_file import model_json
from llama_jax.convert.source import Source, tensors
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.model.presets import TINY
from llama_jax.model.weights import layer_weights
from tests.model.small import SMALL

V = 400


def variants(config):
    """Grouped heads and one for each query head, separate and shared embeddings."""
    multi_head = replace(config, num_kv_heads=config.num_heads)
    return {
        "grouped": config,
        "grouped_tied": replace(config, tie_embeddings=True),
        "multi_head": multi_head,
        "multi_head_tied": replace(multi_head, tie_embeddings=True),
    }


# Widths that are multiples of 32, as int8 formats want them, and the settings that llama2.c has.
GROUPED = replace(TINY, vocab_size=V, max_seq_len=48)  # D=32, L=2, N=4, K=2, H=8, F=64
SHAPES = variants(GROUPED)
# No two sizes agree, nor a setting with its default; D = N H, as every other format needs.
BASE = replace(SMALL, vocab_size=V, head_dim=6, rope_theta=5000.0)  # D=24, F=40
CONFIGS = variants(BASE)


@functools.cache
def tokenizer():
    """A tokenizer of V pieces: the one that llama.cpp's stored ids are of."""
    return Tokenizer.load(Path(__file__).parents[1] / "golden" / "tokenizer.model")


@functools.cache
def random_tensors(config, dtype="float32"):
    """Every tensor of a model as spread as a trained one's, by name and layer."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, layer, weight in tensors(config):
        array = rng.standard_normal(weight.shape)
        if name.endswith("norm"):
            array = 1 + 0.3 * array
        elif name != "embed":
            array /= np.sqrt(weight.shape[0] * (weight.shape[1] if name == "o" else 1))
        arrays[name, layer] = array.astype(getattr(ml_dtypes, dtype, dtype))
    return arrays


def source(config, dtype="float32"):
    """A model with random weights of one type, and a tokenizer."""
    arrays = random_tensors(config, dtype)
    return Source(
        format="native",
        path=Path("memory"),
        config=replace(config, param_dtype=dtype),
        tokenizer=tokenizer().model_bytes,
        tensor=lambda name, layer: arrays[name, layer],
    )


def params_of(found):
    """The parameter tree of a source, layers stacked."""
    names = [name for name, layer, _ in tensors(found.config) if layer is None]
    layers = range(found.config.num_layers)
    return {name: jnp.asarray(found.read(name)) for name in names} | {
        "layers": {
            name: jnp.stack([found.read(name, layer) for layer in layers])
            for name in layer_weights(found.config)
        }
    }


def random_params(config):
    """The parameter tree of a random model, in the type of the configuration."""
    return params_of(source(config, config.param_dtype))


def save(folder, config, params=None):
    """A random model, or the one given, as a model folder that training writes."""
    params = random_params(config) if params is None else params
    save_model(folder, params, model_json(config), tokenizer().model_bytes, {"made": "in a test"})
    return folder


def same_bits(a, b):
    """Whether two trees have the same structure, types, shapes and bits."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def assert_same_tensors(found, expected):
    """Every tensor has the same type and bytes."""
    assert found.config.num_layers == expected.config.num_layers
    for name, layer, weight in tensors(expected.config):
        a, b = found.read(name, layer), expected.read(name, layer)
        assert (a.dtype, a.shape) == (b.dtype, weight.shape), name
        assert a.tobytes() == b.tobytes(), (name, layer)
