"""Packs dialogues into rows for fine-tuning, and preferences into row pairs for reward models.

Both encode with the chat template. What does not fit T tokens loses its oldest turns, never the
end of an answer, where EOS is; what cannot be used is dropped and counted.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from llama_jax.config import require
from llama_jax.data import chat, packing
from llama_jax.data.chat import check_text, encode_answer, encode_within
from llama_jax.data.packing import Masked, Record, best_fit, pack_whole, row_of, windows
from llama_jax.data.recipes import READ, Layout, rows
from llama_jax.data.record_sources import DROPPED, NOTED, RecordSource
from llama_jax.data.records import RATINGS, Preference, check_messages
from llama_jax.data.tokenizer import Tokenizer

UNKNOWN = -1
"""Stands for a missing rating or safety label."""
_SHORTENED, _TOKENS, _PAIRS = "shortened", "tokens", "pairs"
_TOO_LONG = f"{DROPPED}: the last turn alone is too long"
_UNTRAINED = f"{DROPPED}: no answer is trained on"


@dataclass(frozen=True)
class _Recipe:
    """What both recipes have."""

    source: RecordSource
    tokenizer: Tokenizer
    seq_len: int
    kind = "record"

    @property
    def name(self) -> str:
        """The corpus."""
        return self.source.name

    @property
    def identity(self) -> tuple[object, ...]:
        """Corpus, tokenizer, T, template and packing."""
        return (
            self.kind, self.source.identity, self.tokenizer.fingerprint, self.seq_len,
            chat.VERSION, packing.VERSION,
        )  # fmt: skip

    def chunks(self, split: str) -> Sequence[Any]:
        """The corpus's own."""
        return self.source.chunks(split)

    def _read(
        self, split: str, chunks: Sequence[Any], counts: Counter[str]
    ) -> Iterator[tuple[str, Any]]:
        for chunk in chunks:
            for where, record in self.source.records(split, chunk, counts):
                counts[READ] += 1
                yield where, record


class PackedDialogues(_Recipe):
    """Whole dialogues, packed into rows of T tokens; answers are the targets."""

    kind = "dialogue"

    @property
    def layout(self) -> Layout:
        """Arrays [T]."""
        return rows(self.seq_len)

    def records(self, split: str, chunks: Sequence[Any], counts: Counter[str]) -> Iterator[Record]:
        """Rows that hold whole dialogues. InputError, with file and row, for a bad one."""
        return pack_whole(self._encoded(split, chunks, counts), self.seq_len)

    def _encoded(
        self, split: str, chunks: Sequence[Any], counts: Counter[str]
    ) -> Iterator[tuple[list[int], list[bool]]]:
        for where, dialogue in self._read(split, chunks, counts):
            check_messages(dialogue.messages, "assistant", where)
            encoded = encode_within(self.tokenizer, dialogue.messages, self.seq_len, where=where)
            if encoded is None:
                counts[_TOO_LONG] += 1
            elif not any(encoded.trained):
                counts[_UNTRAINED] += 1
            else:
                counts[_SHORTENED] += encoded.dropped_turns > 0
                counts[_TOKENS] += len(encoded.ids)
                yield encoded.ids, encoded.trained

    def report(self, counts: Mapping[str, int], num_records: int) -> str:
        """Numbers of dialogues read, of rows, and of what was shortened and dropped."""
        full = 100 * counts.get(_TOKENS, 0) / max(1, num_records * self.seq_len)
        made = f"{_many(num_records, 'row')} of {self.seq_len} tokens, {full:.1f} % full"
        return summary(self.kind, made, counts)


class _Pair(NamedTuple):
    """A preference, encoded."""

    answers: tuple[Masked, Masked]
    """The conversation with the chosen and with the rejected answer, which is marked."""
    rating: int
    margin: float
    safe: tuple[int, int]

    @property
    def length(self) -> int:
        """Of the longer one, in tokens."""
        return max(len(ids) for ids, _ in self.answers)


@dataclass(frozen=True)
class PreferencePairs(_Recipe):
    """A conversation with its chosen and its rejected answer, each in a row of its own.

    With `per_row` above 1, up to that many pairs share two rows: segment k of the first row is the
    chosen answer, and segment k of the second the rejected answer, of one pair.
    """

    per_row: int = 1
    kind = "preference"

    @property
    def identity(self) -> tuple[object, ...]:
        """That of all recipes, and how many pairs share a row."""
        return *super().identity, self.per_row

    @property
    def layout(self) -> Layout:
        """Arrays [2,T], chosen first, loss_mask on the answers; and the annotations of the pairs.

        rating int32 [K] is 0 to 3, margin float32 [K] NaN if none is given, safe int8 [K,2] 0 or 1
        for each answer; UNKNOWN for missing annotations and places without a pair. K = per_row.
        """
        K = self.per_row
        more = {"rating": ((K,), np.int32), "margin": ((K,), np.float32), "safe": ((K, 2), np.int8)}
        return {**rows(2, self.seq_len), **more}

    def records(self, split: str, chunks: Sequence[Any], counts: Counter[str]) -> Iterator[Record]:
        """Pairs of rows. InputError, with file and row, for a bad one."""
        pairs = self._encoded(split, chunks, counts)
        for window in windows(pairs, lambda pair: pair.length):
            bins = best_fit([pair.length for pair in window], self.seq_len, most=self.per_row)
            for row in sorted(bins):
                yield self._record([window[index] for index in row])

    def _encoded(self, split: str, chunks: Sequence[Any], counts: Counter[str]) -> Iterator[_Pair]:
        for where, preference in self._read(split, chunks, counts):
            check_preference(preference, where)
            texts = preference.chosen, preference.rejected
            answers = [encode_answer(self.tokenizer, text) for text in texts]
            limit = self.seq_len - max(map(len, answers))
            prompt = encode_within(self.tokenizer, preference.messages, limit, where=where)
            if prompt is None:
                counts[_TOO_LONG] += 1
                continue
            counts[_SHORTENED] += prompt.dropped_turns > 0
            counts[_PAIRS] += 1
            rating, margin = preference.rating, preference.margin
            chosen, rejected = (_marked(prompt.ids, answer) for answer in answers)
            yield _Pair(
                (chosen, rejected),
                UNKNOWN if rating is None else rating,
                np.nan if margin is None else margin,
                (_label(preference.safe_chosen), _label(preference.safe_rejected)),
            )

    def _record(self, pairs: Sequence[_Pair]) -> Record:
        """Two rows that hold the pairs in order."""
        both = [row_of([p.answers[side] for p in pairs], self.seq_len) for side in (0, 1)]
        none = self.per_row - len(pairs)
        return {
            **{name: np.stack([row[name] for row in both]) for name in both[0]},
            "rating": np.array([p.rating for p in pairs] + [UNKNOWN] * none, np.int32),
            "margin": np.array([p.margin for p in pairs] + [np.nan] * none, np.float32),
            "safe": np.array([p.safe for p in pairs] + [(UNKNOWN,) * 2] * none, np.int8),
        }

    def report(self, counts: Mapping[str, int], num_records: int) -> str:
        """Numbers of pairs read, shortened and dropped."""
        made = _many(counts.get(_PAIRS, 0), "pair")
        if self.per_row > 1:
            made += f" in {_many(num_records, 'row')} of {self.seq_len} tokens for each answer"
        return summary(self.kind, made, counts)


def _label(safe: bool | None) -> int:
    return UNKNOWN if safe is None else int(safe)


def _marked(prompt: Sequence[int], answer: Sequence[int]) -> Masked:
    """Ids of both, and a mask that marks the answer."""
    marks = np.zeros(len(prompt) + len(answer), np.uint8)
    marks[len(prompt) :] = 1
    return np.array([*prompt, *answer], np.int32), marks


def check_preference(preference: Preference, where: str) -> None:
    """Raise InputError, naming `where`, if a reward model cannot learn from a preference."""
    check_messages(preference.messages, "user", where)
    answers = {"chosen": preference.chosen.strip(), "rejected": preference.rejected.strip()}
    for name, text in answers.items():
        require(text, f"{where}: the {name} answer is empty; remove the row or fill it in")
        check_text(text, f"{where}, {name}", answer=True)
    require(
        answers["chosen"] != answers["rejected"],
        f"{where}: the chosen and the rejected answer are both {answers['chosen']!r:.60}; "
        "remove the row",
    )
    rating, margin = preference.rating, preference.margin
    require(
        rating is None or (type(rating) is int and 0 <= rating < len(RATINGS)),
        f"{where}: rating={rating!r:.40} must be 0 (negligibly better) to {len(RATINGS) - 1} "
        "(significantly better), or left out",
    )
    require(
        margin is None or (type(margin) in (int, float) and 0 <= margin < math.inf),
        f"{where}: margin={margin!r:.40} must be a finite number that is not negative; "
        "where it is, swap the answers",
    )


def summary(kind: str, made: str, counts: Mapping[str, int]) -> str:
    """`1,200 dialogues read, 301 rows ...; 12 shortened ...; 5 dropped: ...; 3 noted: ...`.

    Empty if nothing was read.
    """
    if not counts.get(READ):
        return ""
    parts = [f"{_many(counts[READ], kind)} read, {made}"]
    if shortened := counts.get(_SHORTENED):
        parts.append(f"{shortened:,} shortened by their oldest turns")
    reasons = sorted((key, n) for key, n in counts.items() if key.startswith((DROPPED, NOTED)))
    return "; ".join(parts + [f"{n:,} {key}" for key, n in reasons])


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)
