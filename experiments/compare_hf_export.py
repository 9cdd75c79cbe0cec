"""Our Hugging Face export against transformers: logits, greedy tokens and token ids.

Command   python experiments/compare_hf_export.py make /tmp/exports            # with llama_jax
          python3.11 experiments/compare_hf_export.py check /tmp/exports       # with transformers
Hardware  any CPU
Expected  a minute each; every line of the second ends in "ok"

Two interpreters take part, since llama_jax and torch need not share one. The first makes random
models (multi-head and grouped heads, tied and untied, every rotary scaling, a tokenizer that
`llama-jax tokenizer train` makes, and `--tokenizer PATH` another), exports them with `convert` and
stores our logits, greedy tokens and ids of 10,000 random Unicode strings beside each. The second
needs torch, transformers, sentencepiece and NumPy, and compares.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np

PROMPT, NEW, STRINGS = 24, 32, 10_000
CONTROL = ("<unk>", "<s>", "</s>")


def strings() -> list[str]:
    """Random Unicode of several kinds: ASCII, spaces, Latin, everything, emoji, syllables."""
    rng = random.Random(0)
    everything = [chr(c) for c in range(1, 0x11000) if not 0xD800 <= c < 0xE000]
    pools = [
        [chr(c) for c in range(32, 127)],
        [" ", "\t", "\n", "\u2581", "a"],
        [chr(c) for c in range(0x20, 0x300)],
        everything,
        [chr(c) for c in range(0x1F300, 0x1F700)],
        ["the", "ing", " ", "  ", "er", "on", "123", "<", "s", ">", "/"],
        ["a", "aa", "aaa", " ", "    ", "--", "-"],
    ]
    return ["".join(rng.choices(rng.choice(pools), k=rng.randrange(60))) for _ in range(STRINGS)]


def make(folder: Path, tokenizer: str | None) -> None:
    """Export random models with what we compute of them."""
    from dataclasses import replace

    import jax

    import llama_jax
    from llama_jax.checkpoint import save_model
    from llama_jax.config_file import model_json
    from llama_jax.convert.api import convert
    from llama_jax.data.corpora.tales import story
    from llama_jax.data.tokenizer import Tokenizer, train_tokenizer
    from llama_jax.infer.generate import generate_tokens
    from llama_jax.infer.sampling_params import SamplingParams
    from llama_jax.model.llama import init_params
    from llama_jax.model.presets import TINY, extend_context

    tokens = (
        Tokenizer.load(tokenizer)
        if tokenizer
        else train_tokenizer((story(i) for i in range(2000)), 2000)
    )
    base = replace(TINY, vocab_size=tokens.vocab_size, max_seq_len=128, head_dim=16)
    cases = {
        "grouped": base,
        "grouped_tied": replace(base, tie_embeddings=True),
        "multi_head": replace(base, num_kv_heads=4),
        "multi_head_tied": replace(base, num_kv_heads=4, tie_embeddings=True),
        **{k: extend_context(base, 512, k) for k in ("linear", "ntk", "yarn")},
    }
    folder.mkdir(parents=True)
    for name, config in cases.items():
        params = init_params(jax.random.key(0), config)
        params = jax.tree.map(lambda p: 1.5 * p if p.ndim > 1 else p, params)  # less uniform
        save_model(folder / "native", params, model_json(config), tokens.model_bytes, {})
        convert(folder / "native", folder / name, to="hf")
        for path in sorted((folder / "native").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (folder / "native").rmdir()
        model = llama_jax.load(folder / name)
        row = np.random.default_rng(0).integers(3, config.vocab_size, (1, PROMPT))
        greedy = SamplingParams(max_new_tokens=NEW, temperature=0.0)
        new = generate_tokens(model.params, row.tolist(), greedy, config=config, seeds=[0])
        logits = llama_jax.apply(model.params, jax.numpy.asarray(row), config=model.config)
        np.savez(folder / name / "ours.npz", tokens=row, logits=logits, greedy=np.array(new))
    ids = tokens.encode_batch(strings(), bos=True)
    (folder / "ids.json").write_text(json.dumps(ids))


def check(folder: Path) -> bool:
    """Load each export with transformers and compare; whether all agree."""
    import torch  # pyrefly: ignore[missing-import]
    import transformers  # pyrefly: ignore[missing-import]
    from transformers import (  # pyrefly: ignore[missing-import]
        AutoModelForCausalLM,
        AutoTokenizer,
    )

    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    good = True
    for path in sorted(p for p in folder.iterdir() if p.is_dir()):
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        with np.load(path / "ours.npz") as file:
            ours = dict(file)
        row = torch.from_numpy(ours["tokens"])
        with torch.no_grad():
            logits = model(row).logits.numpy()
            greedy = model.generate(
                row, do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None
            )[0, PROMPT:]
        difference = np.abs(logits - ours["logits"]).max()
        equal = greedy.tolist() == ours["greedy"][0].tolist()
        ok = difference < 1e-4 and equal
        good &= bool(ok)
        largest = np.abs(logits).max()
        print(
            f"{path.name:16} logits within {difference:.2e} (largest {largest:.1f}), "
            f"{NEW} greedy tokens {'equal' if equal else 'differ'}: {'ok' if ok else 'NOT OK'}"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder / "grouped")
    expected, texts = json.loads((folder / "ids.json").read_text()), strings()
    # Unless told not to, Hugging Face reads control tokens out of the text, where we never do.
    wrong = [
        text
        for text, ids in zip(texts, expected, strict=True)
        if tokenizer(text, split_special_tokens=any(c in text for c in CONTROL))["input_ids"] != ids
    ]
    special = sum(any(c in text for c in CONTROL) for text in texts)
    print(
        f"AutoTokenizer    {len(wrong)} of {len(texts)} strings differ ({special} spell a control "
        f"token): {wrong[:3]!r:.200} {'NOT OK' if wrong else 'ok'}"
    )
    return good and not wrong


def main() -> None:
    """Parse and run one half."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("half", choices=["make", "check"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", help="a sentencepiece model instead of one trained here")
    args = parser.parse_args()
    if args.half == "make":
        make(args.folder, args.tokenizer)
    elif not check(args.folder):
        sys.exit(1)


if __name__ == "__main__":
    main()
