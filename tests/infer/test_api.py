"""The Python interface on a random model whose tokens are mostly bytes."""

from dataclasses import replace

import jax
import pytest

import llama_jax
from llama_jax.config import InputError
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY

OPTIONS = {"temperature": 1.0, "seed": 5}


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
    config = replace(TINY, vocab_size=320)
    return llama_jax.Model(config, init_params(jax.random.key(0), config), tokenizer)


@pytest.mark.parametrize("block", [1, 5, 100])
@pytest.mark.parametrize("new", [0, 1, 23])
def test_a_stream_is_what_is_generated_in_pieces(model, block, new):
    pieces = list(llama_jax.stream(model, "Once", max_new_tokens=new, block=block, **OPTIONS))
    assert "".join(pieces) == llama_jax.generate(model, "Once", max_new_tokens=new, **OPTIONS)
    assert pieces[0].startswith("Once")
    assert len(pieces) >= min(new, -(-new // block))


def test_a_stream_refuses_before_it_says_anything(model):
    with pytest.raises(InputError, match="more than the model's context"):
        next(llama_jax.stream(model, "a" * 5000, max_new_tokens=3))
    with pytest.raises(InputError, match="temperature=-1"):
        next(llama_jax.stream(model, "a", max_new_tokens=3, temperature=-1.0))
