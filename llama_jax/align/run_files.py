"""Files in a run folder: host 0 writes them, and every host acts on what host 0 sees."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from etils import epath

from llama_jax.runtime.files import write_atomic
from llama_jax.runtime.hosts import broadcast_from_main, fail_together, is_main
from llama_jax.train.metrics import UPLOAD_SECONDS
from llama_jax.train.uploads import Mirror


def write_on_main(path: epath.Path, content: bytes) -> None:
    """Host 0 writes atomically and makes missing folders; all hosts return when it is done."""
    with fail_together():
        if is_main():
            write_atomic(path, content)


def exists_on_main(path: epath.Path) -> bool:
    """Whether host 0 sees the file, so that all hosts act alike."""
    return broadcast_from_main(path.exists())


@contextmanager
def appending(path: epath.Path) -> Iterator[Callable[[str], None]]:
    """A function that appends text to a file, on host 0; what it wrote survives a kill.

    In a bucket, which cannot append, up to the last minute of text can be lost.
    """
    if not is_main():
        yield lambda text: None
        return
    with Mirror(path.parent) as mirror:
        local = mirror.local / path.name
        if mirror.local != path.parent and path.exists():
            local.write_bytes(path.read_bytes())
        with local.open("a") as file:

            def append(text: str) -> None:
                file.write(text)
                file.flush()
                mirror.upload(every=UPLOAD_SECONDS)

            yield append
