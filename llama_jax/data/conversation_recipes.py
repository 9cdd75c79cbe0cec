"""Dialogues to packed rows for fine-tuning, preferences to pairs of rows for reward models.

Both encode with the chat template. What does not fit T tokens loses its oldest turns, never the
end of an answer, where EOS is; what cannot be used is dropped and counted.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llama_jax.config import require
from llama_jax.data import chat, packing
from llama_jax.data.chat import check_text, encode_answer, encode_within
from llama_jax.data.packing import Record, pack, pack_whole
from llama_jax.data.recipes import READ, Layout, rows
from llama_jax.data.record_sources import DROPPED, NOTED, RecordSource
from llama_jax.data.records import RATINGS, Preference, check_messages
from llama_jax.data.tokenizer import Tokenizer

UNKNOWN = -1
"""What stands for a rating or a safety label that nobody gave."""
_SHORTENED, _TOKENS = "shortened", "tokens"
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
    """Whole dialogues, several in a row of T tokens where they fit; answers are the targets."""

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
        """How many were read, how full the rows are, what was shortened and dropped."""
        full = 100 * counts.get(_TOKENS, 0) / max(1, num_records * self.seq_len)
        made = f"{_many(num_records, 'row')} of {self.seq_len} tokens, {full:.1f} % full"
        return summary(self.kind, made, counts)


class PreferencePairs(_Recipe):
    """A conversation with its chosen and its rejected answer, each in a row of its own."""

    kind = "preference"

    @property
    def layout(self) -> Layout:
        """Arrays [2,T], chosen first, loss_mask on the answers; and what people said of the pair.

        rating int32 [] is 0 to 3, margin float32 [] NaN if none is given, safe int8 [2] 0 or 1 for
        each answer; UNKNOWN where nobody said.
        """
        more = {"rating": ((), np.int32), "margin": ((), np.float32), "safe": ((2,), np.int8)}
        return {**rows(2, self.seq_len), **more}

    def records(self, split: str, chunks: Sequence[Any], counts: Counter[str]) -> Iterator[Record]:
        """Pairs of rows. InputError, with file and row, for a bad one."""
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
            both = [self._row(prompt.ids, answer) for answer in answers]
            rating, margin = preference.rating, preference.margin
            labels = preference.safe_chosen, preference.safe_rejected
            yield {
                **{name: np.stack([row[name] for row in both]) for name in both[0]},
                "rating": np.array(UNKNOWN if rating is None else rating, np.int32),
                "margin": np.array(np.nan if margin is None else margin, np.float32),
                "safe": np.array([UNKNOWN if s is None else s for s in labels], np.int8),
            }

    def _row(self, prompt: list[int], answer: list[int]) -> Record:
        """One segment, of which the answer is marked."""
        marks = [False] * len(prompt) + [True] * len(answer)
        return next(pack([(prompt + answer, marks)], self.seq_len))

    def report(self, counts: Mapping[str, int], num_records: int) -> str:
        """How many were read, shortened and dropped."""
        return summary(self.kind, _many(num_records, "pair"), counts)


def check_preference(preference: Preference, where: str) -> None:
    """Raise InputError, naming `where`, if no reward model can learn from a preference."""
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

    Nothing where nothing was read.
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
