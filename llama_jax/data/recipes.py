"""Recipes turn the documents of a corpus into records; here is the one for plain text."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np

from llama_jax.data import packing
from llama_jax.data.packing import Record, pack, target_bytes
from llama_jax.data.sources import Source
from llama_jax.data.tokenizer import Tokenizer

READ = "read"
"""Key of the number of documents in a recipe's counts."""
TEXT_BYTES, PIECE_BYTES = "text bytes", "piece bytes"
"""Keys of the documents' UTF-8 bytes, and of `target_bytes` of their records."""
Layout = Mapping[str, tuple[tuple[int, ...], type]]
"""Shape and dtype of each array of a record, by name."""
_TEXTS = 256  # documents that sentencepiece gets at once


@runtime_checkable
class Recipe(Protocol):
    """Makes records of one layout from a corpus. It can be pickled, for other processes."""

    @property
    def name(self) -> str:
        """Name of the corpus in messages and folders."""
        ...

    @property
    def kind(self) -> str:
        """Content of the corpus, for messages."""
        ...

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for equal records in equal order."""
        ...

    @property
    def seq_len(self) -> int:
        """T: tokens in a row."""
        ...

    @property
    def layout(self) -> Layout:
        """The stored arrays of a record; positions follow from segment_ids."""
        ...

    def chunks(self, split: str) -> Sequence[Any]:
        """Pieces of the split in order, whatever the number of processes."""
        ...

    def records(self, split: str, chunks: Sequence[Any], counts: Counter[str]) -> Iterator[Record]:
        """The records of some chunks; what was read and its outcome is added to `counts`."""
        ...

    def report(self, counts: Mapping[str, int], num_records: int) -> str:
        """The outcome of a split, in one line for people; empty if there is nothing to say."""
        ...


def rows(*shape: int) -> Layout:
    """The arrays that every record has, with the shape of its tokens."""
    return {
        "tokens": (shape, np.int32),
        "segment_ids": (shape, np.int32),
        "loss_mask": (shape, np.uint8),
    }


@dataclass(frozen=True)
class PackedText:
    """Documents from BOS to EOS, one after another, every token a target."""

    source: Source
    tokenizer: Tokenizer
    seq_len: int
    kind = "text"

    @property
    def name(self) -> str:
        """The corpus."""
        return self.source.name

    @property
    def identity(self) -> tuple[object, ...]:
        """Corpus, tokenizer, T and packing."""
        return self.source.identity, self.tokenizer.fingerprint, self.seq_len, packing.VERSION

    @property
    def layout(self) -> Layout:
        """Arrays [T]."""
        return rows(self.seq_len)

    def chunks(self, split: str) -> Sequence[Any]:
        """The corpus's own."""
        return self.source.chunks(split)

    def records(self, split: str, chunks: Sequence[Any], counts: Counter[str]) -> Iterator[Record]:
        """Packed rows, of which only the last one is padded."""
        lengths, bos = self.tokenizer.byte_lengths, self.tokenizer.bos_id
        for record in pack(self._ids(split, chunks, counts), self.seq_len):
            counts[PIECE_BYTES] += target_bytes(record, lengths, bos)
            yield record

    def _ids(self, split: str, chunks: Sequence[Any], counts: Counter[str]) -> Iterator[list[int]]:
        texts = (text for chunk in chunks for text in self.source.documents(split, chunk))
        while group := list(islice(texts, _TEXTS)):
            counts[READ] += len(group)
            counts[TEXT_BYTES] += sum(len(text.encode()) for text in group)
            yield from self.tokenizer.encode_batch(group, bos=True, eos=True)

    def report(self, counts: Mapping[str, int], num_records: int) -> str:
        """Numbers of documents and of rows."""
        if not num_records:
            return ""
        documents, rows = counts.get(READ, 0), num_records
        return (
            f"{documents:,} document{'s' if documents != 1 else ''} in {rows:,} "
            f"row{'s' if rows != 1 else ''} of {self.seq_len} tokens"
        )
