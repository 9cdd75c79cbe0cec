"""Which batches an evaluation takes, and what it makes of them."""

import math
from functools import partial

import jax
import numpy as np
import pytest

from llama_jax.config import MeshConfig
from llama_jax.data.loader import Loader
from llama_jax.data.prepare import Mixture, Prepared
from llama_jax.parallel.mesh import make_mesh
from llama_jax.pretrain import Evaluation, evaluation, stage, text_bytes
from llama_jax.train.evaluate import evaluate
from llama_jax.train.objective import Mean


def test_a_few_batches_are_spread_over_the_split(tiny):
    pretraining = stage(tiny.config())
    tokenizer = pretraining.new_tokenizer()
    data = pretraining.prepare(tokenizer)
    loader = Loader(data["validation"], batch_size=2, seed=0, shuffle=False)
    seen = []

    def eval_step(params, batch):
        seen.append(np.asarray(batch["tokens"]))
        return {"loss": Mean(np.float32(3), np.float32(2))}

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    observe = partial(text_bytes, tokenizer=tokenizer)
    found = evaluate(eval_step, {}, loader, mesh, observe=observe, max_batches=3)
    result = evaluation(*found, data=data["validation"])
    assert (result.loss, result.targets) == (1.5, 6)
    apart = len(loader) // 3
    assert apart > 1
    for batch, step in zip(seen, (0, apart, 2 * apart), strict=True):
        np.testing.assert_array_equal(batch, loader.batch(step)["tokens"])


def test_bytes_are_those_of_the_text_and_not_of_its_pieces():
    """A tokenizer that drops what it does not know: of 300 bytes of text its pieces spell 200, half
    of which are targets."""
    part = Prepared("mine", "", "validation", "", 8, 4, text_bytes=300, piece_bytes=200)
    found = {"loss": math.log(2)}, {"loss": 60.0}, {"bytes": 100}
    result = evaluation(*found, data=Mixture((part,), (1.0,)))
    assert (result.targets, result.bytes) == (60, 150)
    assert result.bits_per_byte == pytest.approx(60 / 150)


def test_a_model_that_diverged_has_a_perplexity():
    assert Evaluation(loss=1e4, targets=1, bytes=1).perplexity == math.inf
    assert Evaluation(loss=math.log(7), targets=1, bytes=1).perplexity == pytest.approx(7)
