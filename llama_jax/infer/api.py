"""The Python API of text generation: continues a prompt, whole or as a stream."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llama_jax.config import InputError
from llama_jax.infer.generate import stream_tokens
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.models import Model


def generate(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """The prompt and its continuation. It ends at EOS or another end token that the model's files
    name, after `max_new_tokens` tokens, or at the end of the context. Temperature 0 is greedy; `""`
    starts from BOS alone.

    Raises:
      InputError: the model has no tokenizer, the prompt is longer than the context or no valid
        text, or a sampling setting is out of range.
    """
    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p
    )
    return "".join(stream(model, prompt, params, seed=seed, block=max(max_new_tokens, 1)))


def stream(
    model: Model, prompt: str, params: SamplingParams, *, seed: int = 0, block: int = 8
) -> Iterator[str]:
    """The result of `generate` in pieces, `block` tokens at a time, as they are sampled.

    The first piece begins with the prompt; a character of several tokens is never split. Raises as
    `generate` does, before the first piece.
    """
    if not isinstance(prompt, str):
        raise InputError(
            f"prompt must be one text, not {type(prompt).__name__}; call once for each"
        )
    tokenizer = tokenizer_of(model)
    # Where the model's files say that prompts have no BOS, an empty one still needs a token.
    ids = tokenizer.encode(prompt, bos=model.usage.add_bos) or [tokenizer.bos_id]
    said = prompt
    for piece in continue_ids(model, ids, params, seed=seed, block=block):
        yield said + piece
        said = ""


def continue_ids(
    model: Model, ids: Sequence[int], params: SamplingParams, *, seed: int, block: int
) -> Iterator[str]:
    """The text that continues token ids, in pieces as they are sampled."""
    tokenizer = tokenizer_of(model)
    params = replace(params, stop_ids=(*params.stop_ids, *model.usage.end_ids))
    parts = stream_tokens(
        model.prepared,
        [ids],
        params.for_vocabulary(tokenizer.vocab_size, tokenizer.eos_id),
        config=model.config,
        seeds=[seed],
        block=block,
    )
    decode = tokenizer.decoder(after=ids)
    for (new,) in parts:
        yield decode(new)
    yield decode([], final=True)


def tokenizer_of(model: Model):
    """The model's tokenizer; InputError if it has none."""
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer: add one with `llama-jax convert --tokenizer`")
    return model.tokenizer
