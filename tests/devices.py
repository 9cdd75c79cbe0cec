"""How many of the eight fake devices a stage of training sees."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax
import pytest

from llama_jax import pretrain
from llama_jax.align import opening
from llama_jax.parallel.mesh import make_mesh
from llama_jax.train import loop


@contextmanager
def devices(count: int) -> Iterator[None]:
    """Stages in this process see so many. For one a program is compiled in a third of the time."""
    make = partial(make_mesh, devices=jax.devices()[:count])
    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, opening, pretrain):
            patch.setattr(module, "make_mesh", make)
        yield
