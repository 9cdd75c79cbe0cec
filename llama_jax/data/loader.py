"""Global batch `s` as a pure function of (fingerprint, seed, s), on any number of hosts.

The order comes from grain: an index shuffle with a fresh permutation in each epoch, and a weighted
mix of the parts. It needs no state, so resuming is asking for the next step. A host reads the
rows that its devices hold: the number of hosts changes who reads a row, not which rows there are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int

from llama_jax.data.packing import positions_of
from llama_jax.data.prepare import Mixture, Prepared
from llama_jax.data.sources import digest

Batch = dict[str, np.ndarray]
"""The arrays of the records, a batch axis B in front: tokens, segment_ids, positions int32 [B,T],
loss_mask uint8 [B,T]; pairs of answers have [B,2,T] and more arrays, of [B] or [B,2]."""


class Loader:
    """Batches of one mixture, or the rows of them that one host reads.

    With `shuffle` (training): endless, a fresh permutation in each epoch, parts drawn by weight.
    Without (validation): every record of every part once, in order; `len(loader)` batches, the last
    one padded with rows whose segment_ids are 0.

    `rows` are row numbers of the global batch, ascending; None for all of them.
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        rows: Int[np.ndarray, " b"] | None = None,
    ):
        self._rows = np.arange(batch_size) if rows is None else rows
        self.batch_size = batch_size
        self._num_records = mixture.num_records
        self._order = _order(mixture, seed) if shuffle else None
        self._readers = [_Reader(part) for part in mixture.parts]
        self._ends = np.cumsum([part.num_records for part in mixture.parts])

    def __len__(self) -> int:
        """Batches in one epoch."""
        return -(-self._num_records // self.batch_size)

    def batch_ids(self, step: int) -> Int[np.ndarray, "B"]:
        """int64 [B]: record ids of the whole global batch of a step; -1 for a padding row.

        Every host knows them without reading; ids count through the parts in order. Raises
        IndexError beyond the end where there is one.
        """
        if step < 0 or (self._order is None and step >= len(self)):
            raise IndexError(f"batch {step} of {len(self)}")
        index = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        if self._order is None:
            return np.where(index < self._num_records, index, -1)
        return np.array([self._order[int(i)] for i in index], np.int64)

    def batch(self, step: int) -> Batch:
        """This host's rows [b, ...] of the global batch of a step; zeros in a padding row.

        Raises RuntimeError naming the file and record whose data is damaged.
        """
        ids = self.batch_ids(step)[self._rows]
        batch = self._readers[0].empty(len(ids))
        for row, record_id in enumerate(ids):
            if record_id >= 0:
                part = int(np.searchsorted(self._ends, record_id, side="right"))
                start = int(self._ends[part - 1]) if part else 0
                record = self._readers[part].read(int(record_id) - start)
                for name, rows in batch.items():
                    rows[row] = record[name]
        batch["positions"] = positions_of(batch["segment_ids"])
        return batch

    @contextmanager
    def iterate(
        self, start: int = 0, *, every: int = 1, prefetch: int = 4
    ) -> Iterator[Iterator[Batch]]:
        """`with loader.iterate(step) as batches: batch = next(batches)`; threads end with it.

        The batches are those of the steps start, start + every, ...
        """
        import grain

        steps = grain.MapDataset.source(_Steps(self, start, every))
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch)
        batches = iter(steps.to_iter_dataset(options))
        try:
            yield batches
        finally:
            batches.close()  # grain leaves its threads running otherwise

    def close(self) -> None:
        """Close the files."""
        for reader in self._readers:
            reader.close()


class _Steps:
    """Batches by number, as a grain source."""

    def __init__(self, loader: Loader, start: int, every: int):
        self._loader, self._start, self._every = loader, start, every

    def __len__(self) -> int:
        endless = self._loader._order is not None
        left = len(self._loader) - self._start
        return (1 << 62) if endless else max(0, -(-left // self._every))

    def __getitem__(self, index: int) -> Batch:
        return self._loader.batch(self._start + self._every * index)

    def __repr__(self) -> str:
        return f"batches from {self._start}"


def _order(mixture: Mixture, seed: int) -> Any:
    """Record id by row number: shuffled anew in each epoch of each part, mixed by weight."""
    import grain

    offsets = np.cumsum([0] + [part.num_records for part in mixture.parts])
    streams = []
    for number in range(len(mixture.parts)):
        shuffle_seed = int(digest("order", mixture.fingerprint, seed, number)[:8], 16)
        start, stop = int(offsets[number]), int(offsets[number + 1])
        streams.append(grain.MapDataset.range(start, stop).shuffle(seed=shuffle_seed).repeat())
    return grain.MapDataset.mix(streams, mixture.weights) if len(streams) > 1 else streams[0]


def read_columns(path: str | None) -> dict[str, np.ndarray]:
    """The arrays by name of the .npz file that `Prepared.columns` names; empty without one."""
    if path is None:
        return {}
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


class _Reader:
    """Records of one prepared part by number, read from ArrayRecord files."""

    def __init__(self, part: Prepared):
        from llama_jax.data.shards import open_builder  # brings in TFDS

        builder = open_builder(part.path)
        self._info = builder.info.splits[part.split]
        self._features = builder.info.features
        source: Any = builder.as_data_source(split=part.split)
        self._source = source.data_source  # undecoded: one record at a time is faster this way
        self._columns = read_columns(part.columns)
        if len(self._source) != part.num_records:
            raise RuntimeError(
                f"{part.path} holds {len(self._source)} records of {part.num_records}; "
                "delete the folder, it is prepared again"
            )

    def empty(self, size: int) -> Batch:
        """Zeros for so many records."""
        own = {name: (f.shape, f.np_dtype) for name, f in self._features.items()}
        own |= {name: (a.shape[1:], a.dtype) for name, a in self._columns.items()}
        return {name: np.zeros((size, *shape), dtype) for name, (shape, dtype) in own.items()}

    def read(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of a record."""
        try:
            record = self._features.deserialize_example_np(self._source[index])
        except Exception as error:
            file, record = self._locate(index)
            reason = str(error).splitlines()[0][:200] if str(error) else repr(error)
            raise RuntimeError(
                f"{file}, record {record} is damaged ({reason}); "
                "delete its folder, it is prepared again"
            ) from error

        return record | {name: column[index] for name, column in self._columns.items()}

    def _locate(self, index: int) -> tuple[str, int]:
        for path, length in zip(self._info.filepaths, self._info.shard_lengths, strict=True):
            if index < length:
                return str(path), index
            index -= length
        raise IndexError(index)

    def close(self) -> None:
        self._source.__exit__(None, None, None)
