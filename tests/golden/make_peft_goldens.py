"""Write adapter folders as PEFT saves them, with the logits of base and adapter: peft/NAME/.

Run once by hand, in an environment with torch, transformers and peft, which the tests never need:

    python tests/golden/make_peft_goldens.py

The stored folders were made with peft 0.21.2 on transformers 5.24.0 and torch 2.14.1. The base is
the model of grouped.npz; each folder holds adapter_config.json and adapter_model.safetensors, and
logits.npy [B,T,V] of the first 8 of its tokens.
"""

import json
from pathlib import Path

import numpy as np
import torch
from make_transformers_goldens import GROUPED, hugging_face_config
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM

HERE = Path(__file__).parent
TARGETS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
CASES = {
    "plain": {"r": 3, "lora_alpha": 5},
    "rslora": {"r": 2, "lora_alpha": 3, "use_rslora": True},
}


def main():
    """One folder a case."""
    with np.load(HERE / "grouped.npz") as file:
        arrays = dict(file)
    for name, settings in CASES.items():
        base = LlamaForCausalLM(hugging_face_config(GROUPED)).float().eval()
        for key, parameter in base.named_parameters():
            parameter.data = torch.from_numpy(arrays[f"w.{key}"]).float()
        model = get_peft_model(base, LoraConfig(target_modules=TARGETS, **settings)).eval()
        generator = torch.Generator().manual_seed(1)
        for key, parameter in model.named_parameters():
            if "lora_" in key:  # B too, which begins as 0
                parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        with torch.no_grad():
            logits = model(torch.from_numpy(arrays["tokens"][:, :8]).long()).logits
        folder = HERE / "peft" / name
        model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "grouped"
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
        np.save(folder / "logits.npy", logits.numpy())


if __name__ == "__main__":
    main()
