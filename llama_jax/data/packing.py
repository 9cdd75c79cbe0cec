"""Documents to records of exactly T tokens: whole documents one after another, none mixed up.

A record is dict(tokens, segment_ids, positions, loss_mask), each [T]. Segments count from 1, 0 is
padding; positions restart in each segment. A document that reaches a record's end goes on in the
next record as a new segment, whose first token repeats the last one of the previous record: every
token but the first of a document is a target exactly once.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Integer

VERSION = 1
"""Raise it whenever records change: it is part of the fingerprint of prepared data."""

Record = dict[str, np.ndarray]
"""tokens, segment_ids, positions int32 and loss_mask uint8, each [T] or, in batches, [B,T]."""
Document = Sequence[int] | tuple[Sequence[int], Sequence[int]]
"""Ids from BOS to EOS, or (ids, mask) where the mask says which ids count as targets."""


def pack(documents: Iterable[Document], seq_len: int) -> Iterator[Record]:
    """Records of `seq_len` tokens; only the last one may be padded.

    Raises ValueError if `seq_len` is less than 2 or a mask's length is not its document's.
    """
    if seq_len < 2:
        raise ValueError(f"seq_len={seq_len} must be at least 2: a token and its target")
    record, used, segment = _empty(seq_len), 0, 0
    for document in documents:
        ids, mask = _ids_and_mask(document)
        start = 0
        while start < len(ids):
            if used == seq_len:
                yield _finish(record)
                record, used, segment = _empty(seq_len), 0, 0
            segment += 1
            stop = min(len(ids), start + seq_len - used)
            end = used + stop - start
            record["tokens"][used:end] = ids[start:stop]
            record["loss_mask"][used:end] = mask[start:stop]
            record["segment_ids"][used:end] = segment
            used = end
            start = stop - 1 if stop < len(ids) else stop
    if used:
        yield _finish(record)


def _ids_and_mask(document: Document) -> tuple[np.ndarray, np.ndarray]:
    if not isinstance(document, tuple):
        return np.asarray(document, np.int32), np.ones(len(document), np.uint8)
    ids, mask = np.asarray(document[0], np.int32), np.asarray(document[1], np.uint8)
    if len(ids) != len(mask):
        raise ValueError(f"document of {len(ids)} ids has a mask of {len(mask)}")
    return ids, mask


def _empty(seq_len: int) -> Record:
    return {
        "tokens": np.zeros(seq_len, np.int32),
        "segment_ids": np.zeros(seq_len, np.int32),
        "loss_mask": np.zeros(seq_len, np.uint8),
    }


def _finish(record: Record) -> Record:
    return record | {"positions": positions_of(record["segment_ids"])}


def positions_of(segment_ids: Int[np.ndarray, "*B T"]) -> Int[np.ndarray, "*B T"]:
    """int32: how far each token is from the beginning of its segment; 0 in padding."""
    index = np.arange(segment_ids.shape[-1], dtype=np.int32)
    begins = np.ones(segment_ids.shape, bool)
    begins[..., 1:] = segment_ids[..., 1:] != segment_ids[..., :-1]
    start = np.maximum.accumulate(np.where(begins, index, 0), axis=-1)
    return np.where(segment_ids > 0, index - start, 0).astype(np.int32)


def target_mask(batch: Record) -> Bool[np.ndarray, "*B T"]:
    """Which tokens are predicted and counted: those with a predecessor in their segment."""
    segments = batch["segment_ids"]
    mask = (segments > 0) & (batch["loss_mask"] > 0)
    mask[..., 1:] &= segments[..., 1:] == segments[..., :-1]
    mask[..., 0] = False
    return mask


def target_bytes(batch: Record, byte_lengths: Integer[np.ndarray, "V"], bos_id: int) -> int:
    """UTF-8 bytes of the text whose tokens are counted as targets, for bits per byte.

    `byte_lengths` counts the space that sentencepiece puts before a text; it is taken off again
    where a counted token follows BOS.
    """
    counted, tokens = target_mask(batch), batch["tokens"]
    lengths = byte_lengths[tokens] * counted
    after_bos = (tokens[..., :-1] == bos_id) & (lengths[..., 1:] > 0)
    return int(lengths.sum(dtype=np.int64) - after_bos.sum())
