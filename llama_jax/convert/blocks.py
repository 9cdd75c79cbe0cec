"""Writes large files with direct I/O in blocks, and fills the next block meanwhile.

Writing through the page cache would cost a copy, which takes longer than the disk does, and as
much memory again, for a model that nobody reads soon. On a file system without direct I/O the same
blocks are written through the cache.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Buffer
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

BLOCK = 4 << 20
_DIRECT = getattr(os, "O_DIRECT", 0)  # Linux has it


class BlockFile:
    """A new file, written from its first byte to its last. Raises OSError, possibly one block late.

    Two blocks alternate: one is filled while a thread writes the other. Their memory and file
    offsets are aligned as direct I/O needs; the rest, less than a block, goes through the page
    cache.
    """

    def __init__(self, file: Path):
        self._descriptor = _create(file)
        self._blocks = [np.frombuffer(mmap.mmap(-1, BLOCK), np.uint8) for _ in range(2)]
        self._filled = 0  # bytes of the first block
        self._written = 0  # bytes of the file that the blocks before had
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1)

    def write(self, data: Buffer | np.ndarray) -> None:
        """Append bytes, or an array in C order; the caller may change it afterwards."""
        array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
        left = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        while left.size:
            count = min(left.size, BLOCK - self._filled)
            self._blocks[0][self._filled : self._filled + count] = left[:count]
            left = left[count:]
            self._filled += count
            if self._filled == BLOCK:
                self._wait()
                block = self._blocks[0]
                self._pending = self._thread.submit(self._put, block, self._written)
                self._blocks.reverse()
                self._written, self._filled = self._written + BLOCK, 0

    def __enter__(self) -> "BlockFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._wait()
            if kind is None and self._filled:
                _through_cache(self._descriptor)
                self._put(self._blocks[0][: self._filled], self._written)
        finally:
            self._thread.shutdown()
            os.close(self._descriptor)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _put(self, block: np.ndarray, start: int) -> None:
        while block.size:
            try:
                count = os.pwrite(self._descriptor, block, start)
            except OSError as error:  # some file systems refuse only now
                if error.errno != errno.EINVAL or not _through_cache(self._descriptor):
                    raise
                continue
            block, start = block[count:], start + count


def _create(file: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(file, flags | _DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(file, flags, 0o666)


def _through_cache(descriptor: int) -> bool:
    """Give up direct access; whether there was any."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
    return bool(flags & _DIRECT)
