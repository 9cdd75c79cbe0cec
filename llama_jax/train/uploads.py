"""Files that grow in a run folder; a bucket cannot append, so there they are uploaded whole."""

import contextlib
import os
import tempfile
import time
from pathlib import Path

from etils import epath

from llama_jax.checkpoint.storage import can_rename


class Mirror:
    """A folder to write in: on a file system `folder` itself, otherwise a local copy whose changed
    files `upload` copies into `folder` as a whole. A context that ends with an upload.

    A kill loses what a bucket did not get since the last upload: lines after the last checkpoint,
    which a resumed run writes again.
    """

    def __init__(self, folder: epath.Path):
        self.folder = folder
        self.local = folder
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()
        self._stack = contextlib.ExitStack()
        if not can_rename(folder):
            scratch = tempfile.TemporaryDirectory(prefix="llama_jax-")
            self.local = epath.Path(self._stack.enter_context(scratch))
            self._stack.callback(self.upload)

    def upload(self, every: float = 0.0) -> None:
        """Bring `folder` up to date, unless that was done within the last `every` seconds."""
        if self.local == self.folder or time.monotonic() - self._last < every:
            return
        for parent, _, names in os.walk(self.local):
            for file in (Path(parent, name) for name in names):
                name = file.relative_to(self.local).as_posix()
                state = file.stat()
                key = (state.st_size, state.st_mtime_ns)
                if self._uploaded.get(name) != key:
                    (self.folder / name).write_bytes(file.read_bytes())
                    self._uploaded[name] = key
        self._last = time.monotonic()

    def close(self) -> None:
        """Upload, and remove the local copy."""
        self._stack.close()

    def __enter__(self) -> "Mirror":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
