"""Tokenizer files with which Hugging Face's AutoTokenizer gives the ids of a sentencepiece model.

The class is named `PreTrainedTokenizerFast`, which takes tokenizer.json as it is. transformers'
own `LlamaTokenizer` rebuilds it with a prefix space that it leaves out before texts that begin with
one, and differs there from sentencepiece.

sentencepiece merges, of all neighbours whose joint text is a piece, the pair whose piece has the
highest score. Hugging Face lists pairs by rank instead: every cut of a piece into two others, in
the order of the pieces' scores.
"""

import json

from llama_jax.config import require
from llama_jax.data.sentencepiece_proto import Vocabulary
from llama_jax.data.tokenizer import MODEL_FILE, Tokenizer

SPACE = "\u2581"


def files(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, bytes]:
    """tokenizer.model, tokenizer.json and tokenizer_config.json by name.

    Raises InputError for a sentencepiece model that is not BPE with byte fallback and no
    normalisation, as Llama's are: the files would give other ids.
    """
    _check(tokenizer.vocabulary)
    names = [piece.text for piece in tokenizer.vocabulary.pieces]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[tokenizer.bos_id],
        "eos_token": names[tokenizer.eos_id],
        "unk_token": names[tokenizer.unk_id],
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_seq_len,
    }
    content = tokenizer_json(tokenizer, names)
    return {
        MODEL_FILE: tokenizer.model_bytes,
        "tokenizer.json": json.dumps(content, ensure_ascii=False, indent=1).encode() + b"\n",
        "tokenizer_config.json": json.dumps(settings, indent=2).encode() + b"\n",
    }


def _check(v: Vocabulary) -> None:
    """Refuse what tokenizer.json, as it is written here, would not reproduce."""
    settings = {
        "model type": (v.model_type, "bpe"),
        "byte_fallback": (v.byte_fallback, True),
        "add_dummy_prefix": (v.add_dummy_prefix, True),
        "remove_extra_whitespaces": (v.remove_extra_whitespaces, False),
        "normalisation": (v.normalizer, "identity"),
    }
    for name, (value, wanted) in settings.items():
        require(
            value == wanted,
            f"the tokenizer has {name} {value}, and Llama's {wanted}: Hugging Face's files for it "
            "would give other ids",
        )


def tokenizer_json(tokenizer: Tokenizer, names: list[str]) -> dict:
    """The `tokenizers` library's description of a sentencepiece model."""
    control = [tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id]
    bos = names[tokenizer.bos_id]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i, "content": names[i], "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True,
            }
            for i in sorted(control)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special(bos, 0), _sequence("A", 0)],
            "pair": [_special(bos, 0), _sequence("A", 0), _special(bos, 1), _sequence("B", 1)],
            "special_tokens": {bos: {"id": bos, "ids": [tokenizer.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": names[tokenizer.unk_id],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": _merges(tokenizer.vocabulary),
        },
    }  # fmt: skip


def _special(token: str, segment: int) -> dict:
    return {"SpecialToken": {"id": token, "type_id": segment}}


def _sequence(name: str, segment: int) -> dict:
    return {"Sequence": {"id": name, "type_id": segment}}


def _merges(vocabulary: Vocabulary) -> list[list[str]]:
    """Every way to make a piece of two others, best pieces first."""
    scores = {p.text: p.score for p in vocabulary.pieces if p.kind == "normal"}
    return [
        [piece[:cut], piece[cut:]]
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
