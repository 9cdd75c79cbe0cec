"""Programs with all of XLA's optimisations, which other tests do without."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

NAME = "jax_disable_most_optimizations"


@contextmanager
def optimizing() -> Iterator[None]:
    """What is compiled in this context is what users have."""
    before = jax.config.read(NAME)
    jax.config.update(NAME, False)
    try:
        yield
    finally:
        jax.config.update(NAME, before)
