"""Write the golden logits of Hugging Face transformers' LlamaForCausalLM, one .npz a case.

Run once by hand, in an environment with torch and transformers, which the tests never need:

    python tests/golden/make_transformers_goldens.py

The stored files were made with transformers 5.23.0 and torch 2.13.0 on a CPU in float32. Each holds
`config` (JSON: our ModelConfig and the versions), `tokens` and `positions` [B,T], `logits` [B,T,V],
and `w.NAME` for every tensor, under its Hugging Face name and in its layout ([out, in]); weights
are rounded to float16 on both sides, which halves the files and changes nothing else.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

BASE = dict(
    vocab_size=64,
    d_model=16,
    num_layers=2,
    num_heads=4,
    num_kv_heads=4,
    head_dim=16,
    d_ff=40,
    max_seq_len=1024,
    norm_eps=1e-5,
    tie_embeddings=False,
    rope_theta=10_000.0,
    rope_scaling="none",
    rope_factor=1.0,
    dtype="float32",
)
GROUPED = {**BASE, "num_kv_heads": 2}
CASES = {
    "multi_head": BASE,
    "multi_head_tied": {**BASE, "tie_embeddings": True},
    "grouped": GROUPED,
    "grouped_tied": {**GROUPED, "tie_embeddings": True, "norm_eps": 1e-6},
    "grouped_linear": {**GROUPED, "rope_scaling": "linear", "rope_factor": 4.0},
    "grouped_yarn": {**GROUPED, "rope_scaling": "yarn", "rope_factor": 4.0},
}


def hugging_face_config(c):
    """The LlamaConfig of our fields."""
    rope = {"rope_type": "default", "rope_theta": c["rope_theta"]}
    if c["rope_scaling"] != "none":
        rope |= {"rope_type": c["rope_scaling"], "factor": c["rope_factor"]}
    if c["rope_scaling"] == "yarn":
        rope["original_max_position_embeddings"] = int(c["max_seq_len"] / c["rope_factor"])
    return LlamaConfig(
        vocab_size=c["vocab_size"],
        hidden_size=c["d_model"],
        num_hidden_layers=c["num_layers"],
        num_attention_heads=c["num_heads"],
        num_key_value_heads=c["num_kv_heads"],
        head_dim=c["head_dim"],
        intermediate_size=c["d_ff"],
        max_position_embeddings=c["max_seq_len"],
        rms_norm_eps=c["norm_eps"],
        tie_word_embeddings=c["tie_embeddings"],
        rope_parameters=rope,
        attn_implementation="eager",
    )


def randomise(model):
    """Weights as spread as those of a trained model, norms that are not 1."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.3 * noise
        elif "embed" in name:
            value = noise
        else:
            value = noise / parameter.shape[-1] ** 0.5
        parameter.data = value.half().float()


def main():
    """One file a case, beside this script."""
    for name, c in CASES.items():
        model = LlamaForCausalLM(hugging_face_config(c)).float().eval()
        randomise(model)
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, c["vocab_size"], (2, 32))
        positions = np.stack([np.arange(32), 30 * np.arange(32)])  # as far as position 930
        causal = torch.full((32, 32), torch.finfo(torch.float32).min).triu(1)
        with torch.no_grad():
            logits = model(
                input_ids=torch.from_numpy(tokens),
                position_ids=torch.from_numpy(positions),
                attention_mask=causal.expand(2, 1, 32, 32),
            ).logits
        config = {
            "model": c,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }
        np.savez_compressed(
            Path(__file__).with_name(f"{name}.npz"),
            config=json.dumps(config),
            tokens=tokens.astype(np.int32),
            positions=positions.astype(np.int32),
            logits=logits.numpy(),
            **{
                f"w.{key}": parameter.detach().half().numpy()
                for key, parameter in model.named_parameters()
            },
        )


if __name__ == "__main__":
    main()
