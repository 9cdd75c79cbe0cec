"""Extends a trained vocabulary with new pieces for another language.

Old pieces keep their ids and their merges come first, so text in which no new piece occurs is
encoded as before. New pieces are learned by continuing byte-pair encoding on the old tokenizer's
output, which is why every new piece can be reached.
"""

import heapq
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby, pairwise
from typing import Any

from llama_jax.config import require
from llama_jax.data.sentencepiece_proto import KIND_NUMBERS, SPACE, model_message
from llama_jax.data.tokenizer import Tokenizer, check_unicode

_MAX_CHARS = 16  # of a piece, as sentencepiece's own limit
_MAX_WORD = 64  # characters of unspaced text taken together


def grow(
    tokenizer: Tokenizer, texts: Iterable[str], num_new: int
) -> tuple[Tokenizer, list[list[int]]]:
    """Append `num_new` pieces learned from texts in another language.

    Returns the grown tokenizer and, for each new piece, the old ids that spelled it, so that its
    embedding can start as the mean of theirs (`llama_jax.model.weights`).

    Raises InputError if the texts support fewer new pieces, or contain lone surrogates.
    """
    require(num_new > 0, f"number of new pieces {num_new} must be positive")
    model = model_message().FromString(tokenizer.model_bytes)
    known = {piece.piece for piece in model.pieces}
    bare = _without_dummy_prefix(model)
    words = [
        (symbols, count)
        for word, count in _words(texts).items()
        if len(symbols := _symbols(bare, word)) > 0
    ]
    pieces = _learn(words, known, num_new)
    require(
        len(pieces) == num_new,
        f"{num_new} new pieces are more than the text supports; it supports {len(pieces)}",
    )
    lowest = min(piece.score for piece in model.pieces)
    for rank, piece in enumerate(pieces):
        model.pieces.add(piece=piece, score=lowest - 1 - rank, type=KIND_NUMBERS["normal"])
    model.trainer_spec.vocab_size = len(model.pieces)
    spelled = bare.encode_batch([piece.replace(SPACE, " ") for piece in pieces])
    return Tokenizer.from_bytes(model.SerializeToString()), spelled


def _words(texts: Iterable[str]) -> Counter[str]:
    """Runs of letters and their marks, with the space before them if there is one."""
    words: Counter[str] = Counter()
    for text in texts:
        check_unicode(text)
        for word in text.split():
            before = SPACE
            for is_letter, run in groupby(word, lambda c: unicodedata.category(c)[0] in "LM"):
                letters = "".join(run)
                if is_letter:
                    for start in range(0, len(letters), _MAX_WORD):
                        words[before + letters[start : start + _MAX_WORD]] += 1
                        before = ""
                before = ""
    return words


def _symbols(bare: Tokenizer, word: str) -> list[str]:
    """The pieces that the old tokenizer leaves of a word; what it spells in bytes as characters."""
    symbols = []
    ids = bare.encode(word.replace(SPACE, " "))
    pieces = _pieces(bare)
    for is_byte, run in groupby(ids, lambda token: pieces[token] is None):
        if is_byte:
            symbols += bare.decode_bytes(list(run)).decode("utf-8")
        else:
            symbols += [pieces[token] for token in run]
    return symbols


@cache
def _pieces(tokenizer: Tokenizer) -> list[str | None]:
    """Pieces by id; None for bytes."""
    model = model_message().FromString(tokenizer.model_bytes)
    return [None if piece.type == KIND_NUMBERS["byte"] else piece.piece for piece in model.pieces]


def _learn(words: list[tuple[list[str], int]], known: set[str], num_new: int) -> list[str]:
    """Byte-pair encoding from where it stopped: unknown characters first, then merges."""
    characters: Counter[str] = Counter()
    for symbols, count in words:
        for symbol in symbols:
            if symbol not in known:
                characters[symbol] += count
    # Rare characters stay in bytes: they would take the place of pieces that save more.
    common = [
        c for c, n in sorted(characters.items(), key=lambda item: (-item[1], item[0])) if n > 1
    ]
    learnt = common[: max(1, num_new // 2)]
    corpus = _Corpus(words)
    while len(learnt) < num_new:
        piece = corpus.most_frequent()
        if piece is None:
            break
        learnt.append(piece)
        corpus.merge(piece)
    return learnt


class _Corpus:
    """Words as symbols, with counts of what adjacent symbols would make together.

    Counted by the string, not by the pair: sentencepiece merges whatever spells a piece.
    """

    def __init__(self, words: list[tuple[list[str], int]]):
        self._words = [list(symbols) for symbols, _ in words]
        self._counts = [count for _, count in words]
        self._total: Counter[str] = Counter()
        self._where: defaultdict[str, set[int]] = defaultdict(set)
        self._heap: list[tuple[int, str]] = []
        for index in range(len(words)):
            self._add(index, 1)
        self._push(list(self._total))

    def _add(self, index: int, sign: int) -> list[str]:
        joined = [a + b for a, b in pairwise(self._words[index])]
        for text in joined:
            self._total[text] += sign * self._counts[index]
            self._where[text].add(index)
        return joined

    def _push(self, texts: Iterable[str]) -> None:
        for text in texts:
            if self._total[text] > 1 and len(text) <= _MAX_CHARS:
                heapq.heappush(self._heap, (-self._total[text], text))

    def most_frequent(self) -> str | None:
        """The string with the highest count above 1, the first of equals; None if there is none."""
        while self._heap:
            count, text = heapq.heappop(self._heap)
            if -count == self._total[text]:
                return text
        return None

    def merge(self, piece: str) -> None:
        """Join adjacent symbols that spell the piece, from the left.

        What neighbours spell then is never an older piece: between boundaries that no merge has
        crossed, a text is encoded as it would be alone, and that is the older piece itself.
        """
        changed: set[str] = set()
        for index in self._where.pop(piece, ()):
            changed.update(self._add(index, -1))
            self._words[index] = list(_merged(self._words[index], piece))
            changed.update(self._add(index, 1))
        self._total.pop(piece, None)
        self._push(sorted(changed - {piece}))


def _merged(symbols: list[str], piece: str) -> Iterator[str]:
    index = 0
    while index < len(symbols):
        if index + 1 < len(symbols) and symbols[index] + symbols[index + 1] == piece:
            yield piece
            index += 2
        else:
            yield symbols[index]
            index += 1


def _without_dummy_prefix(model: Any) -> Tokenizer:
    """The old tokenizer for parts of words."""
    bare = model_message().FromString(model.SerializeToString())
    bare.normalizer_spec.add_dummy_prefix = False
    return Tokenizer.from_bytes(bare.SerializeToString())
