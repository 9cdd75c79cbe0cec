"""Hugging Face's tokenizer.json -> the pieces of a sentencepiece model with the same ids.

What transformers makes of a Llama's tokenizer.model holds the pieces as a vocabulary, and in the
place of their scores a list of merges: every cut of a piece into two others, in the order of the
scores. Where the list is complete, sentencepiece gives the same ids with scores in that order;
where it is not, as in files that Hugging Face's own trainer wrote, no sentencepiece model does.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_jax.config import InputError, require
from llama_jax.data.sentencepiece_proto import (
    SPACE,
    Kind,
    Piece,
    UnusableTokenizer,
    Vocabulary,
)
from llama_jax.data.vocabulary_repairs import AddedToken, is_unicode, repaired
from llama_jax.runtime.files import parse_json, shown

_MAX_PIECES = 1 << 19
_MAX_WORK = 1 << 26  # Llama's vocabulary takes a fiftieth of it
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_METASPACE = {"type": "Metaspace", "replacement": SPACE}
_NAMES = {
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
    "bos": ("<s>", "<|begin_of_text|>", "<|startoftext|>", "<bos>", "[BOS]"),
    "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>", "[EOS]"),
}


def symbol_split(symbols: Iterable[str]) -> dict[str, Any]:
    """A pre-tokenizer that keeps user-defined symbols whole, the longest first, as sentencepiece
    does.

    Text between two of them is looked up before it is merged (`ignore_merges`), so that the symbols
    are found; the name of a byte would be found too, so its first character is split off.
    """
    ordered = sorted(symbols, key=lambda symbol: (-len(symbol), symbol))
    choices = "|".join(re.sub(r"([\\^$.|?*+()\[\]{}-])", r"\\\1", symbol) for symbol in ordered)
    split = {"behavior": "Isolated", "invert": False}
    parts = [choices, r"\A<(?=0x[0-9A-F]{2}>\z)"]
    return {
        "type": "Sequence",
        "pretokenizers": [{"type": "Split", "pattern": {"Regex": part}, **split} for part in parts],
    }


def read(
    content: bytes, where: str, roles: Mapping[str, str] | None = None
) -> tuple[Vocabulary, list[AddedToken]]:
    """The vocabulary of a tokenizer.json, and the tokens that were added after it.

    Args:
      roles: the texts of `bos_token`, `eos_token` and `unk_token` where another file names them.

    Raises:
      InputError: the file is damaged.
      UnusableTokenizer: it is valid, but no sentencepiece model gives its ids.
    """
    values = parse_json(content, where)
    require(isinstance(values, dict), f"{where} must hold a JSON object, not {shown(values)}")
    model = values.get("model")
    require(isinstance(model, dict), f"{where} has no model: it is not a tokenizer.json")
    kind = model.get("type", "BPE")
    _usable(kind == "BPE", f"{where} is of type {shown(kind)}, not BPE")
    _usable(
        model.get("byte_fallback") is True,
        f"{where} is byte-pair encoding without byte fallback, such as GPT-2's and Llama 3's; "
        "this program has sentencepiece's, such as Llama 2's",
    )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        _usable(not model.get(name), f"{where} has {name}={shown(model.get(name))}")
    texts = _texts(model.get("vocab"), where)
    added = added_tokens(values.get("added_tokens"), where)
    ranks, cuts = _merges(model.get("merges"), set(texts.values()), where)
    kinds: dict[str, Kind] = {text: "byte" for text in texts.values() if _BYTE.fullmatch(text)}
    for symbol in _symbols(values, texts, ranks, added, where):
        kinds[symbol] = "user_defined"
    for token in added:
        kinds[token.text] = "control" if token.special else "user_defined"
    normal = {text for text in texts.values() if text not in kinds}
    for text in normal:
        halves = {i for i in range(1, len(text)) if text[:i] in normal and text[i:] in normal}
        found = cuts.get(text, set())
        if halves != found:
            counts = f"{len(found)} merges of {len(halves)}"
            raise UnusableTokenizer(f"{where}: {_OTHER_RULES} ({shown(text)} has {counts})")
    unused = (Piece(f"<unused_{token}>", 0.0, "unused") for token in itertools.count())
    pieces = [
        Piece(texts[i], -float(ranks.get(texts[i], 0)), kinds.get(texts[i], "normal"))
        if i in texts
        else piece
        for i, piece in zip(range(max(texts) + 1), unused, strict=False)
    ]
    unk, bos, eos = _roles({t: token for token, t in texts.items()}, model, roles or {}, where)
    vocabulary = Vocabulary(
        pieces=tuple(pieces),
        unk_id=unk,
        bos_id=bos,
        eos_id=eos,
        add_dummy_prefix=_prefixed(values, where),
    )
    return repaired(vocabulary, len(pieces))[0], added


def added_tokens(given: Any, where: str) -> list[AddedToken]:
    """The added tokens that a tokenizer.json lists."""
    rows = given if given is not None else []
    require(isinstance(rows, list), f"{where}: added_tokens is {shown(rows)}, not a list")
    for row in rows:
        sound = isinstance(row, dict) and isinstance(row.get("content"), str)
        sound = sound and type(row.get("id")) is int and 0 <= row["id"] < 2**31
        require(sound, f"{where}: an added token is {shown(row)}")
    return [AddedToken(r["id"], r["content"], r.get("special") is True) for r in rows]


def _usable(condition: object, message: str) -> None:
    if not condition:
        raise UnusableTokenizer(message)


def _texts(vocab: Any, where: str) -> dict[int, str]:
    """Texts by id."""
    sound = isinstance(vocab, dict) and 0 < len(vocab) <= _MAX_PIECES
    require(sound, f"{where} has no vocabulary of texts and ids")
    for text, token in vocab.items():
        fits = type(token) is int and 0 <= token < 2 * _MAX_PIECES and is_unicode(text)
        require(fits, f"{where}: {shown(text)} has the invalid id {shown(token)}")
    require(len({*vocab.values()}) == len(vocab), f"{where} has an id twice")
    work = sum(len(text) ** 2 for text in vocab)
    require(work <= _MAX_WORK, f"{where} has pieces that are too long for a tokenizer")
    # Spaces are written as U+2581 before pieces are looked up: one with a space is never found.
    texts = {token: text for text, token in vocab.items() if " " not in text}
    require(texts, f"{where} has no vocabulary of texts and ids")
    return texts


def _merges(merges: Any, texts: set[str], where: str) -> tuple[dict[str, int], dict[str, set[int]]]:
    """For each piece that is made of two others its rank, and where it is cut into them.

    Raises UnusableTokenizer unless the merges that make one piece follow each other.
    """
    require(isinstance(merges, list), f"{where} has no list of merges")
    ranks: dict[str, int] = {}
    cuts: dict[str, set[int]] = {}
    last = None
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        two = isinstance(pair, list) and len(pair) == 2
        if not two or not all(isinstance(half, str) and half in texts for half in pair):
            raise InputError(f"{where}: the merge {shown(merge)} is not a pair of pieces")
        whole = pair[0] + pair[1]
        if whole not in texts:
            raise InputError(f"{where}: the merge {shown(merge)} does not make a piece")
        if whole != last:
            if whole in ranks:
                raise UnusableTokenizer(f"{where}: {_OTHER_RULES} ({shown(whole)} comes twice)")
            ranks[whole] = len(ranks)
        last = whole
        cuts.setdefault(whole, set()).add(len(pair[0]))
    return ranks, cuts


_OTHER_RULES = (
    "its merges are not those of a sentencepiece model, so none would give the same ids; "
    "tokenizer.model is needed"
)


def _symbols(
    values: Mapping[str, Any],
    texts: Mapping[int, str],
    ranks: Mapping[str, int],
    added: Sequence[AddedToken],
    where: str,
) -> list[str]:
    """The user's symbols: those that the pre-tokenizer keeps whole, as in the files we write."""
    given = values.get("pre_tokenizer")
    if given is None or _is_metaspace(given):
        return []
    others = {token.text for token in added}
    apart = [
        text
        for text in texts.values()
        if len(text) > 1 and text not in ranks and text not in others and not _BYTE.fullmatch(text)
    ]
    ours = values["model"].get("ignore_merges") is True and given == symbol_split(apart)
    _usable(ours, f"{where} has the pre-tokenizer {shown(given)}, which is not sentencepiece's")
    return apart


def _prefixed(values: Mapping[str, Any], where: str) -> bool:
    """Whether a space is put before the text; UnusableTokenizer for any other normalisation."""
    normalizer: Any = values.get("normalizer")
    pre: Any = values.get("pre_tokenizer")
    steps = normalizer if normalizer is not None else {"normalizers": []}
    steps = steps.get("normalizers", [steps]) if isinstance(steps, dict) else None
    if _is_metaspace(pre) and steps == []:
        scheme = pre.get("prepend_scheme", "always")
        old = pre.get("add_prefix_space")
        return old is not False and scheme in ("always", "first")
    _usable(
        steps in ([_PREPEND, _REPLACE], [_REPLACE]) and not _is_metaspace(pre),
        f"{where} normalises text by {shown(normalizer)}, as Llama's tokenizer does not",
    )
    return steps == [_PREPEND, _REPLACE]


def _is_metaspace(given: Any) -> bool:
    """Whether spaces are written as in sentencepiece, and the text is not cut at them."""
    if not isinstance(given, dict) or given.get("split", True) is not False:
        return False
    known = {"type", "replacement", "prepend_scheme", "split", "add_prefix_space", "str_rep"}
    return set(given) <= known and {k: given.get(k) for k in _METASPACE} == _METASPACE


def _roles(
    ids: Mapping[str, int], model: Mapping[str, Any], roles: Mapping[str, str], where: str
) -> list[int]:
    """Ids of unk, BOS and EOS: by the names that are given, else by those that are usual."""
    unk = model.get("unk_token")
    given = {"unk_token": unk} if isinstance(unk, str) else {}
    found = []
    for role, usual in _NAMES.items():
        name = (given | dict(roles)).get(f"{role}_token")
        names = [name, *usual] if name is not None else list(usual)
        token = next((ids[n] for n in names if n in ids), -1)
        _usable(token >= 0 or role == "unk", f"{where} names no {role.upper()} token")
        found.append(token)
    return found
