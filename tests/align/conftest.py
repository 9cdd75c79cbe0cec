"""One small chat model of every stage, made once, that the tests of the stages share."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import jax
import pytest

from llama_jax.align import opening
from llama_jax.parallel.mesh import make_mesh
from llama_jax.pretrain import pretrain
from llama_jax.train import loop
from tests.align.tiny_chat import TinyChat


@contextmanager
def devices(count: int) -> Iterator[None]:
    """Stages in this process see so many devices."""
    make = partial(make_mesh, devices=jax.devices()[:count])
    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, opening):
            patch.setattr(module, "make_mesh", make)
        yield


@pytest.fixture(scope="session")
def chat(tmp_path_factory) -> TinyChat:
    """A base, its fine-tuned model, and three reward models, of one device."""
    from llama_jax.align.reward import reward
    from llama_jax.align.sft import sft

    tiny = TinyChat(tmp_path_factory.mktemp("chat")).prepare()
    with devices(1):
        pretrain(tiny.base())
        sft(tiny.sft(eval_every=6, sample_prompts=("Can a cat eat corn?",)))
        for kind in ("helpfulness", "safety", "heldout"):
            reward(tiny.reward(kind, eval_every=2))
    return tiny


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> TinyChat:
    """The files of the same world, for what needs no trained model."""
    return TinyChat(tmp_path_factory.mktemp("files")).prepare()
