"""Logits of Hugging Face transformers' LlamaForCausalLM; see tests/golden."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax.config import ModelConfig
from llama_jax.config_file import from_dict
from llama_jax.model.llama import apply
from llama_jax.model.weights import abstract_params
from tests import oracle
from tests.comparison import assert_close

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def load(name):
    """Configuration, parameters in our layout, tokens, positions, logits."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    cfg = from_dict(ModelConfig, json.loads(str(arrays["config"]))["model"])
    D, H = cfg.d_model, cfg.head_dim

    def weight(name):
        return arrays[f"w.{name}.weight"].astype(np.float32)

    def heads(matrix):  # [heads * H, D] -> [D, heads, H]; the halves of H are where ours are
        return matrix.T.reshape(D, -1, H)

    def layer(i):
        part = f"model.layers.{i}."
        return {
            "attn_norm": weight(part + "input_layernorm"),
            "q": heads(weight(part + "self_attn.q_proj")),
            "k": heads(weight(part + "self_attn.k_proj")),
            "v": heads(weight(part + "self_attn.v_proj")),
            "o": weight(part + "self_attn.o_proj").T.reshape(-1, H, D),
            "mlp_norm": weight(part + "post_attention_layernorm"),
            "gate": weight(part + "mlp.gate_proj").T,
            "up": weight(part + "mlp.up_proj").T,
            "down": weight(part + "mlp.down_proj").T,
        }

    layers = jax.tree.map(lambda *a: np.stack(a), *(layer(i) for i in range(cfg.num_layers)))
    params = {"embed": weight("model.embed_tokens"), "norm": weight("model.norm"), "layers": layers}
    if not cfg.tie_embeddings:
        params["head"] = weight("lm_head").T
    return cfg, params, arrays["tokens"], arrays["positions"], arrays["logits"]


def test_the_goldens_are_there():
    assert {"multi_head", "grouped", "grouped_tied", "grouped_linear", "grouped_yarn"} <= {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_logits_agree_with_transformers(name):
    cfg, params, tokens, positions, golden = load(name)
    params = jax.tree.map(jnp.asarray, params)
    assert jax.tree.map(lambda p: p.shape, params) == jax.tree.map(
        lambda p: p.shape, abstract_params(cfg)
    )
    logits = apply(params, jnp.asarray(tokens), config=cfg, positions=jnp.asarray(positions))
    assert_close(logits, golden, 1e-4)  # of the largest |logit|
    # Row 0 stands at positions 0, 1, 2...: there float32 angles hold more digits.
    assert_close(logits[0], golden[0], 1e-5)


@pytest.mark.parametrize("name", ["grouped", "grouped_yarn"])
def test_the_oracle_agrees_with_transformers(name):
    cfg, params, tokens, positions, golden = load(name)
    assert_close(oracle.forward(params, tokens, cfg, positions), golden, 1e-4)
