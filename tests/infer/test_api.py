"""The Python interface on a random model whose tokens are mostly bytes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

import llama_jax
from llama_jax.config import InputError
from llama_jax.convert.usage import Usage
from llama_jax.data.corpora import tales
from llama_jax.data.tokenizer import train_tokenizer
from llama_jax.infer.generate import generate_tokens
from llama_jax.infer.sampling_params import check_seeds, check_temperature, count
from llama_jax.model.llama import init_params
from llama_jax.model.presets import TINY


@pytest.fixture(scope="module")
def model():
    tokenizer = train_tokenizer([tales.story(i) for i in range(50)], 320)
    config = replace(TINY, vocab_size=320)
    return llama_jax.Model(config, init_params(jax.random.key(0), config), tokenizer)


@pytest.mark.parametrize("block", [1, 5, 100])
@pytest.mark.parametrize("new", [0, 1, 23])
def test_a_stream_is_what_is_generated_in_pieces(model, block, new):
    params = llama_jax.SamplingParams(max_new_tokens=new)
    pieces = list(llama_jax.stream(model, "Once", params, seed=5, block=block))
    assert "".join(pieces) == llama_jax.generate(model, "Once", max_new_tokens=new, seed=5)
    assert pieces[0].startswith("Once")
    assert len(pieces) >= min(new, -(-new // block))


def test_what_cannot_be_is_refused_before_anything_is_said(model):
    params = llama_jax.SamplingParams(max_new_tokens=3)
    with pytest.raises(InputError, match="5001 tokens but the model's context is"):
        next(llama_jax.stream(model, "a" * 5000, params))
    with pytest.raises(InputError, match="seed=-1"):
        next(llama_jax.stream(model, "a", params, seed=-1))
    with pytest.raises(InputError, match="no tokenizer"):
        llama_jax.generate(replace(model, tokenizer=None), "a", max_new_tokens=3)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -2},
        {"top_k": 2**31},
        {"max_new_tokens": -1},
        {"max_new_tokens": 10**30},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_with_their_value(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"{name}={value!r:.20}"):
        llama_jax.SamplingParams(**{"max_new_tokens": 3, **options})


@pytest.mark.parametrize("value", ["0.5", None, True, [1]], ids=str)
def test_what_is_no_number_is_refused(value):
    with pytest.raises(InputError, match="temperature="):
        check_temperature(value)
    with pytest.raises(InputError, match="top_k="):
        count(value, "top_k", 0, "tokens")
    with pytest.raises(InputError, match=r"top_k=2\.5"):
        count(2.5, "top_k", 0, "tokens")


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, None, True], ids=str)
def test_seeds_out_of_range_are_refused_with_their_value(seed):
    with pytest.raises(InputError, match=f"seed={seed}"):
        check_seeds([0, 2**32 - 1, seed], "seed")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_only_pad_the_table_are_never_drawn(model, temperature):
    """64 rows more than pieces, and the most probable ones: the text is that without them."""
    rows = model.config.vocab_size + 64
    params = dict(model.params)
    assert not model.config.tie_embeddings
    params["embed"] = jnp.pad(params["embed"], [(0, 64), (0, 0)])
    # Their logits are the largest magnitude that any other has, whatever its sign.
    params["head"] = jnp.concatenate([params["head"], 3 * params["head"][:, -64:]], axis=1)
    padded = replace(model, config=replace(model.config, vocab_size=rows), params=params)
    options = {"max_new_tokens": 40, "temperature": temperature, "seed": 3}
    free = generate_tokens(
        padded.params,
        [[1, 5]],
        llama_jax.SamplingParams(max_new_tokens=40, temperature=temperature),
        config=padded.config,
        seeds=[3],
    )
    assert max(free[0]) >= model.config.vocab_size
    for prompt in ("Once", "The"):
        assert llama_jax.generate(padded, prompt, **options) == llama_jax.generate(
            model, prompt, **options
        )


def test_every_end_of_text_that_the_files_name_ends_a_text(model):
    """Chat models end their turns with tokens of their own."""
    ids = model.tokenizer.encode("Once", bos=True)
    greedy = llama_jax.SamplingParams(max_new_tokens=12, temperature=0.0)
    free = generate_tokens(
        model.params, [ids], replace(greedy, vocab_limit=320), config=model.config, seeds=[0]
    )[0]
    last = next(i for i, token in enumerate(free) if i > 2 and token not in free[:i])
    ends = replace(model, usage=Usage(end_ids=(319, free[last])))
    said = llama_jax.generate(ends, "Once", max_new_tokens=12, temperature=0.0)
    decode = model.tokenizer.decoder(after=ids)
    assert said == "Once" + decode(free[:last], final=True)
    assert said != llama_jax.generate(model, "Once", max_new_tokens=12, temperature=0.0)


def test_prompts_begin_with_bos_unless_the_files_say_otherwise(model, monkeypatch):
    seen = []

    def record(params, prompts, *_, **__):
        seen.extend(prompts)
        yield [[]]

    monkeypatch.setattr("llama_jax.infer.api.stream_tokens", record)
    without = replace(model, usage=Usage(add_bos=False))
    for one in (model, without):
        for prompt in ("Once", ""):
            llama_jax.generate(one, prompt, max_new_tokens=1)
    once = model.tokenizer.encode("Once")
    assert seen == [[1, *once], [1], once, [1]]
