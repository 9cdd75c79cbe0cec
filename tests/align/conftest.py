"""One small chat model of every stage, made once, that the tests of the stages share."""

import fcntl
import os
import shutil
from pathlib import Path

import pytest

from llama_jax.pretrain import pretrain
from tests.align.tiny_chat import TinyChat
from tests.devices import devices


@pytest.fixture(scope="session")
def chat(tmp_path_factory) -> TinyChat:
    """A base, its fine-tuned model, and three reward models, of one device. All workers of xdist
    have copies of what the first one made."""
    everyone = Path(tmp_path_factory.getbasetemp())
    if "PYTEST_XDIST_WORKER" in os.environ:
        everyone = everyone.parent
    original, own = everyone / "trained_chat", tmp_path_factory.mktemp("chat") / "own"
    with (everyone / "trained_chat.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not original.exists():
            _train(everyone / "training_chat")
            (everyone / "training_chat").rename(original)
    shutil.copytree(original, own)
    return TinyChat(own)


def _train(folder: Path) -> None:
    from llama_jax.align.reward import reward
    from llama_jax.align.sft import sft

    shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed
    folder.mkdir()
    tiny = TinyChat(folder).prepare()
    with devices(1):
        pretrain(tiny.base())
        sft(tiny.sft(eval_every=6, sample_prompts=("Can a cat eat corn?",)))
        for kind in ("helpfulness", "safety", "heldout"):
            reward(tiny.reward(kind, eval_every=2))


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> TinyChat:
    """The files of the same world, for what needs no trained model."""
    return TinyChat(tmp_path_factory.mktemp("files")).prepare()
