"""The Python interface to text generation: continue a prompt, whole or in pieces."""

from collections.abc import Iterator

from llama_jax.config import InputError
from llama_jax.infer.generate import Sampling, stream_tokens
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
    """The prompt and its continuation, which ends at EOS, after `max_new_tokens` tokens, or at the
    end of the context. Temperature 0 is greedy; `""` starts from BOS alone.

    Raises:
      InputError: the model has no tokenizer, the prompt is longer than the context or no valid
        text, or a sampling setting is out of range.
    """
    parts = stream(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        block=max(max_new_tokens, 1),
    )
    return "".join(parts)


def stream(
    model: Model,
    prompt: str,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    block: int = 8,
) -> Iterator[str]:
    """What `generate` returns, in pieces as they are drawn, `block` tokens at a time.

    The first piece begins with the prompt; a character of several tokens comes whole. Raises as
    `generate` does, before the first piece.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError("the model has no tokenizer: add one with `llama-jax convert --tokenizer`")
    ids = tokenizer.encode(prompt, bos=True)
    parts = stream_tokens(
        model.prepared,
        [ids],
        config=model.config,
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_k, top_p),
        seeds=[seed],
        eos_id=tokenizer.eos_id,
        block=block,
    )
    said, decode = prompt, tokenizer.decoder(after=ids)
    for (new,) in parts:
        yield said + decode(new)
        said = ""
    yield said + decode([], final=True)
