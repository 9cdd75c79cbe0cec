"""Packs documents into records of T tokens with segment ids.

A record is dict(tokens, segment_ids, positions, loss_mask), each [T]. Segments count from 1, 0 is
padding; positions restart in each segment. `pack` wastes nothing: a document that reaches a
record's end goes on in the next record as a new segment, whose first token repeats the last one of
the previous record, so every token but the first of a document is a target exactly once.
`pack_whole` cuts no document, as conversations need it, and fills records by best fit.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Integer

VERSION = 1
"""Increase it whenever records change: it is part of the fingerprint of prepared data."""

Record = dict[str, np.ndarray]
"""tokens, segment_ids, positions int32 and loss_mask uint8, each [T] or, in batches, [B,T]."""
Document = Sequence[int] | tuple[Sequence[int], Sequence[int]]
"""Ids from BOS to EOS, or (ids, mask) where the mask says which ids count as targets."""
WINDOW_TOKENS = 1 << 24
"""Whole documents are packed in groups of this many tokens."""
Masked = tuple[np.ndarray, np.ndarray]
"""(ids int32, mask uint8) of a document."""


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
            used = _add(record, used, ids[start:stop], mask[start:stop], segment)
            start = stop - 1 if stop < len(ids) else stop
    if used:
        yield _finish(record)


def pack_whole(documents: Iterable[Document], seq_len: int) -> Iterator[Record]:
    """Records of `seq_len` tokens, each with whole documents followed by padding.

    Some millions of tokens are packed at a time, so memory does not grow with the corpus. Raises
    ValueError if a document is empty or longer than `seq_len`, or a mask has the wrong length.
    """
    for window in windows(map(_ids_and_mask, documents), lambda document: len(document[0])):
        for row in best_fit([len(ids) for ids, _ in window], seq_len):
            yield row_of([window[index] for index in row], seq_len)


def row_of(documents: Iterable[Masked], seq_len: int) -> Record:
    """One record that holds whole documents, in order, and padding."""
    record, used = _empty(seq_len), 0
    for segment, document in enumerate(documents, 1):
        used = _add(record, used, *document, segment)
    return _finish(record)


def best_fit(lengths: Sequence[int], seq_len: int, *, most: int | None = None) -> list[list[int]]:
    """Bins of `seq_len` as lists of indices into `lengths`: best-fit decreasing.

    The longest item is placed first, equal ones in order, each into the fullest bin that has room
    for it and fewer than `most` items. Bins are kept by their room and rooms as bits of a number,
    so this bin is found without a search: the time is that of sorting.
    """
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(seq_len + 1)]
    rooms = 0  # bit r is set where by_room[r] holds a bin
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if not 0 < length <= seq_len:
            raise ValueError(f"document of {length} tokens does not go into {seq_len=}")
        if fitting := rooms >> length:
            room = length + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            rooms ^= 0 if by_room[room] else 1 << room
        else:
            room, number = seq_len, len(bins)
            bins.append([])
        bins[number].append(index)
        if most is None or len(bins[number]) < most:
            by_room[room - length].append(number)
            rooms |= 1 << room - length
    return bins


def windows[Item](items: Iterable[Item], length: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Items in order, in lists of about WINDOW_TOKENS tokens; `length` counts them."""
    window, tokens = [], 0
    for item in items:
        window.append(item)
        tokens += length(item)
        if tokens >= WINDOW_TOKENS:
            yield window
            window, tokens = [], 0
    if window:
        yield window


def _add(record: Record, used: int, ids: np.ndarray, mask: np.ndarray, segment: int) -> int:
    """Write a segment behind `used` tokens; how many are used then."""
    end = used + len(ids)
    record["tokens"][used:end] = ids
    record["loss_mask"][used:end] = mask
    record["segment_ids"][used:end] = segment
    return end


def _ids_and_mask(document: Document) -> Masked:
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
    """Marks the tokens that are predicted and counted: those with a predecessor in their
    segment."""
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
