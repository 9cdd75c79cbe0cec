"""Parses requests of OpenAI's API into jobs: every field checked, prompts as token ids."""

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llama_jax.config import InputError
from llama_jax.data.chat import encode_prompt
from llama_jax.data.tokenizer import Tokenizer
from llama_jax.infer.engine.request import Grammar, Request
from llama_jax.infer.sampling_params import SamplingParams
from llama_jax.runtime.files import shown
from llama_jax.serve.errors import ApiError, invalid, too_long, unsupported
from llama_jax.serve.fields import Fields
from llama_jax.serve.grammar import Grammars

MAX_N, MAX_PROMPTS, MAX_LOGPROBS = 8, 128, 20
MAX_STOPS, MAX_STOP_CHARACTERS, MAX_STOP_IDS, MAX_BIASES = 16, 256, 8, 1024
DEFAULT_MAX_TOKENS = 16
_LEAST_TOP_P = 1e-9  # 0 means the most probable token alone
# Fields of OpenAI's API, and of servers that extend it, which would change an answer and which this
# server does not have; and the values at which they ask for nothing.
_ABSENT: dict[str, tuple[Any, ...]] = {
    "suffix": ("",), "tools": ([],), "tool_choice": ("none",), "functions": ([],),
    "function_call": ("none",), "audio": (), "modalities": (["text"],), "prediction": (),
    "web_search_options": (), "min_p": (0, 0.0), "repetition_penalty": (1, 1.0), "min_tokens": (0,),
    "prompt_logprobs": (), "truncate_prompt_tokens": (), "logprob_token_ids": ([],),
    "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
    "structured_outputs": (), "json_schema": (), "grammar": ("",), "bad_words": ([],),
    "allowed_token_ids": (), "use_beam_search": (False,), "length_penalty": (1, 1.0),
    "include_stop_str_in_output": (False,), "skip_special_tokens": (True,), "chat_template": (),
    "chat_template_kwargs": ({},), "continue_final_message": (False,),
    "add_generation_prompt": (True,), "prompt_embeds": (), "typical_p": (1, 1.0),
    "repeat_penalty": (1, 1.0), "mirostat": (0,), "xtc_probability": (0, 0.0),
    "dry_multiplier": (0, 0.0), "n_predict": (), "n_probs": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """The model as requests see it."""

    name: str
    tokenizer: Tokenizer
    context: int
    """Tokens of a prompt and its answer together."""
    vocab_size: int
    """Ids that a prompt may hold, and be continued with."""
    end_ids: tuple[int, ...]
    """Tokens that end a text, EOS among them."""
    add_bos: bool
    adapters: tuple[str, ...] = ()
    """Names of the model with its adapters, in their order."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names that requests may use: the model itself, then with each adapter."""
        return (self.name, *self.adapters)

    @cached_property
    def grammars(self) -> Grammars:
        """Compiles schemas for its answers."""
        return Grammars(self.tokenizer, self.end_ids)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One request: answers to some prompts, and how they are wanted."""

    chat: bool
    model: str
    """Its name in the request."""
    prompts: list[list[int]]
    requests: list[list[Request]]
    """Of each prompt, `best_of` of them."""
    texts: list[str | None]
    """Of each prompt, where it came as text."""
    n: int
    """Answers to each prompt that are told."""
    best_of: int
    """Answers that are drawn for them: the most probable ones are told."""
    stops: list[str]
    stream: bool
    include_usage: bool
    """Whether a stream ends with a chunk that says how many tokens it took."""
    echo: bool
    logprobs: int | None
    """How many of the most probable tokens come with each; None for no log-probabilities."""
    tokens_as_ids: bool
    """Whether log-probabilities name tokens by their ids."""


def completion(fields: Fields, model: Served, scope: bytes) -> Job:
    """The job of POST /v1/completions. Raises ApiError."""
    named_model(fields, model)
    texts, prompts = _prompts(fields, model)
    echo = fields.flag("echo")
    logprobs = fields.whole("logprobs", None, 0, MAX_LOGPROBS)
    new = fields.whole("max_tokens", None, 0, 2**31 - 1)
    if new == 0 and not echo:
        raise invalid("max_tokens", "must be at least 1, or 0 with echo")
    return _job(
        fields, model, scope, texts, prompts, new, DEFAULT_MAX_TOKENS, echo, logprobs, False
    )


def chat_completion(fields: Fields, model: Served, scope: bytes) -> Job:
    """The job of POST /v1/chat/completions. Raises ApiError."""
    named_model(fields, model)
    ids = chat_ids(fields, model)
    top = fields.whole("top_logprobs", None, 0, MAX_LOGPROBS)
    wanted = fields.flag("logprobs")
    if top is not None and not wanted:
        raise invalid("top_logprobs", "needs logprobs to be true")
    new = fields.whole("max_completion_tokens", None, 1, 2**31 - 1)
    if new is None:
        new = fields.whole("max_tokens", None, 1, 2**31 - 1)
    return _job(
        fields, model, scope, [None], [ids], new, model.context, False,
        (top or 0) if wanted else None, True,
    )  # fmt: skip


def named_model(fields: Fields, model: Served) -> str:
    """The model that the request names. Raises ApiError unless it is here."""
    name = fields.text("model", None, 1024)
    if name is None:
        raise invalid("model", f"is missing: name {model.name}", "missing_required_parameter")
    if name not in model.names:
        raise ApiError(
            404,
            f"The model {shown(name)} does not exist; this server has {', '.join(model.names)}.",
            code="model_not_found",
            param="model",
        )
    return name


def chat_ids(fields: Fields, model: Served) -> list[int]:
    """The prompt of a conversation: pieces of text, with control ids that no text can hold."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("messages", f"must be a list that is not empty, not {shown(messages)}")
    try:
        return encode_prompt(
            model.tokenizer, [_message(m, n) for n, m in enumerate(messages)], where="messages"
        )
    except InputError as error:
        raise ApiError(400, f"{error}", code="invalid_value", param="messages") from error


def text_ids(text: str, model: Served, param: str, *, special: bool = True) -> list[int]:
    """The ids of a text, BOS before it where the model's prompts have one."""
    try:
        return model.tokenizer.encode(text, bos=special and model.add_bos)
    except InputError as error:
        raise ApiError(400, f"{param}: {error}", code="invalid_value", param=param) from error


def token_ids(value: Any, model: Served, param: str) -> list[int]:
    """Ids that came as numbers."""
    for token in value:
        if type(token) is not int or not 0 <= token < model.vocab_size:
            raise invalid(
                param,
                f"holds {shown(token)}, which is no token id from 0 to {model.vocab_size - 1}",
            )
    return list(value)


def _message(message: Any, number: int) -> dict[str, str]:
    where = f"messages[{number}]"
    if not isinstance(message, dict):
        raise invalid(where, f"must be an object, not {shown(message)}")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise invalid(f"{where}.role", f"must be system, user or assistant, not {shown(role)}")
    if isinstance(content, list):
        parts = []
        for n, part in enumerate(content):
            text = part.get("text") if isinstance(part, dict) else None
            if not isinstance(text, str) or part.get("type") != "text":
                raise unsupported(f"{where}.content[{n}]", "must be of type text: this is Llama 2")
            parts.append(text)
        content = "".join(parts)
    if not isinstance(content, str):
        raise invalid(f"{where}.content", f"must be a string, not {shown(content)}")
    return {"role": "system" if role == "developer" else role, "content": content}


def _prompts(fields: Fields, model: Served) -> tuple[list[str | None], list[list[int]]]:
    """Each prompt's text, where it came as one, and its ids."""
    value, special = fields.get("prompt"), fields.flag("add_special_tokens", True)
    if value is None:
        raise invalid("prompt", "is missing", "missing_required_parameter")
    if isinstance(value, list) and value and all(type(t) is int for t in value):
        value = [value]
    many: Any = [value] if isinstance(value, str) else value
    if not isinstance(many, list) or not 0 < len(many) <= MAX_PROMPTS:
        raise invalid(
            "prompt",
            f"must be a text, token ids, or a list of at most {MAX_PROMPTS} of them, not "
            f"{shown(value)}",
        )
    texts: list[str | None] = []
    prompts = []
    for n, one in enumerate(many):
        param = "prompt" if one is value else f"prompt[{n}]"
        if isinstance(one, str):
            # Where prompts have no BOS, an empty one still needs a token.
            ids = text_ids(one, model, param, special=special) or [model.tokenizer.bos_id]
            texts.append(one)
        elif isinstance(one, list) and one:
            ids = token_ids(one, model, param)
            texts.append(None)
        else:
            raise invalid(param, f"must be a text or token ids, not {shown(one)}")
        prompts.append(ids)
    return texts, prompts


def _job(
    fields: Fields,
    model: Served,
    scope: bytes,
    texts: list[str | None],
    prompts: list[list[int]],
    new: int | None,
    default: int,
    echo: bool,
    logprobs: int | None,
    chat: bool,
) -> Job:
    _refuse_absent(fields)
    name = named_model(fields, model)
    n = fields.whole("n", 1, 1, MAX_N)
    best_of = fields.whole("best_of", n, n, MAX_N)
    stream = fields.flag("stream")
    if stream and best_of > n:
        raise invalid("best_of", f"must be as n, {n}, with stream: the best is known at the end")
    options = fields.object("stream_options")
    if options.values and not stream:
        raise invalid("stream_options", "needs stream to be true")
    stop_ids = _stop_ids(fields, model)
    seed = fields.whole("seed", None, -(2**63), 2**63 - 1)
    seed = secrets.randbits(32) if seed is None else _in_32_bits(seed)
    fields.text("user", None, 256)
    salt = fields.text("cache_salt", None, 1024)
    if salt is not None:
        scope = hashlib.sha256(scope + b"\0" + salt.encode("utf-8", "surrogatepass")).digest()
    sampling, bias, grammar = _sampling(fields), _bias(fields, model), _grammar(fields, model)
    penalties = {
        name: fields.number(name, 0.0, -2, 2) for name in ("presence_penalty", "frequency_penalty")
    }
    requests = []
    for ids in prompts:
        most = _new_tokens(len(ids), new, default, model.context, "messages" if chat else "prompt")
        params = SamplingParams(
            max_new_tokens=most, stop_ids=stop_ids, vocab_limit=model.vocab_size, **sampling
        )
        requests.append(
            [
                Request(
                    prompt=tuple(ids),
                    sampling=params,
                    seed=seed,
                    adapter=model.names.index(name),
                    sample=sample,
                    **penalties,
                    bias=bias,
                    grammar=grammar,
                    scored=logprobs is not None or best_of > n,
                    prompt_scored=echo and logprobs is not None and sample == 0,
                    scope=scope,
                )
                for sample in range(best_of)
            ]
        )
    return Job(
        chat=chat,
        model=name,
        prompts=prompts,
        requests=requests,
        texts=texts,
        n=n,
        best_of=best_of,
        stops=fields.texts("stop", count=MAX_STOPS, most=MAX_STOP_CHARACTERS),
        stream=stream,
        include_usage=options.flag("include_usage"),
        echo=echo,
        logprobs=logprobs,
        tokens_as_ids=fields.flag("return_tokens_as_token_ids"),
    )


def _in_32_bits(seed: int) -> int:
    """A seed of 64 bits as one of the engine's; what is one already stays as it is."""
    if 0 <= seed < 2**32:
        return seed
    digest = hashlib.sha256(seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(digest[:4], "little")


def _refuse_absent(fields: Fields) -> None:
    for name, harmless in _ABSENT.items():
        value = fields.get(name)
        if value is not None and not any(
            value == one and type(value) is type(one) for one in harmless
        ):
            raise unsupported(name, f"is not supported by this server, and came as {shown(value)}")


def _sampling(fields: Fields) -> dict[str, Any]:
    return {
        "temperature": fields.number("temperature", 1.0, 0, 2),
        "top_p": max(fields.number("top_p", 1.0, 0, 1), _LEAST_TOP_P),
        "top_k": max(fields.whole("top_k", 0, -1, 2**31 - 1), 0),
    }


def _new_tokens(prompt: int, new: int | None, default: int, context: int, param: str) -> int:
    """Tokens of an answer: as asked for, or what the context leaves of the default."""
    room, wanted = context - prompt, 1 if new is None else new
    if prompt > context or wanted > room:
        raise too_long(prompt, wanted, context, "max_tokens" if room > 0 else param)
    return min(default, room) if new is None else new


def _stop_ids(fields: Fields, model: Served) -> tuple[int, ...]:
    given = fields.get("stop_token_ids")
    given = [] if given is None else given
    if not isinstance(given, list) or len(given) > MAX_STOP_IDS:
        raise invalid(
            "stop_token_ids", f"must be a list of at most {MAX_STOP_IDS}, not {shown(given)}"
        )
    ends = () if fields.flag("ignore_eos") else model.end_ids
    return tuple(dict.fromkeys((*ends, *token_ids(given, model, "stop_token_ids"))))


def _bias(fields: Fields, model: Served) -> dict[int, float]:
    given = fields.object("logit_bias")
    names = list(fields.get("logit_bias") or ())  # those with null, too
    if len(names) > MAX_BIASES:
        raise invalid("logit_bias", f"must have at most {MAX_BIASES} entries, not {len(names)}")
    bias = {}
    for name in names:
        if not (name.isascii() and name.isdigit() and int(name[:12]) < model.vocab_size):
            raise invalid(
                "logit_bias",
                f"names {shown(name)}, which is no token id from 0 to {model.vocab_size - 1}",
            )
        bias[int(name)] = given.number(name, 0.0, -100, 100)
    return bias


def _grammar(fields: Fields, model: Served) -> Callable[[], Grammar] | None:
    """What `response_format` makes answers keep to."""
    wanted = fields.object("response_format")
    kind = wanted.text("type", "text" if fields.get("response_format") is None else None, 64)
    if kind not in ("text", "json_object", "json_schema"):
        raise invalid(
            "response_format.type", f"must be text, json_object or json_schema, not {shown(kind)}"
        )
    if kind == "text":
        return None
    schema, param = None, "response_format"
    if kind == "json_schema":
        described = wanted.object("json_schema")
        schema, param = described.get("schema"), described.name("schema")
        described.text("name", None, 64)
        described.flag("strict")
        if not isinstance(schema, dict):
            raise invalid(param, f"must be a JSON schema, an object, not {shown(schema)}")
    try:
        return model.grammars.compile(schema)
    except InputError as error:
        raise invalid(param, f"{error}") from error
