"""The OpenAPI 3.1 document of the server: `/openapi.json`, for people, generators and fuzzers."""

from typing import Any

from llama_jax import __version__
from llama_jax.serve import job
from llama_jax.serve.job import Served
from llama_jax.serve.settings import Settings

Schema = dict[str, Any]
_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}
_WHOLE: Schema = {"type": "integer"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_STATUSES = {
    "400": "A field is wrong: `param` names it", "401": "No key, or a wrong one",
    "403": "Another name or page than this server's", "404": "No such model or path",
    "408": "The body came too slowly", "413": "The body is too large",
    "415": "The body is no JSON", "429": "The queue is full: come back after Retry-After",
    "500": "A failure", "503": "The server loads or ends", "504": "The answer took too long",
}  # fmt: skip


def document(served: Served, settings: Settings) -> Schema:
    """The document for one model, every bound that requests are checked against included."""
    secured: Schema = {"security": [{"key": []}]} if settings.keys else {}
    return {
        "openapi": "3.1.0",
        "info": {"title": "llama-jax serve", "version": __version__},
        "paths": _paths(served),
        "components": {
            "schemas": {
                **_requests(served, settings),
                **_answers(),
                "Error": _record(
                    error=_record(
                        message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT)
                    )
                ),
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        **secured,
    }


def _paths(served: Served) -> Schema:
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": [*served.names]}}
    return {
        "/v1/completions": {"post": _operation("Completion", "Continue texts", body=True)},
        "/v1/chat/completions": {
            "post": _operation("ChatCompletion", "Answer a conversation", body=True)
        },
        "/v1/models": {"get": _operation("Models", "The model, alone and with adapters")},
        "/v1/models/{name}": {
            "parameters": [name],
            "get": _operation("Model", "The model of this name"),
        },
        "/tokenize": {"post": _operation("Tokenize", "A text or conversation as ids", body=True)},
        "/detokenize": {"post": _operation("Detokenize", "Ids as a text", body=True)},
        "/tokenizer_info": {"get": _operation("TokenizerInfo", "The names of control tokens")},
        "/health": {"get": _operation("Health", "Whether the server and its device live")},
        "/ready": {"get": _operation("Ready", "Whether a request would be taken", more="503")},
        "/metrics": {"get": _operation("Metrics", "For Prometheus", kind="text/plain")},
        "/openapi.json": {"get": _operation("Document", "This document")},
    }


def _operation(
    name: str,
    summary: str,
    *,
    body: bool = False,
    more: str | None = None,
    kind: str = "application/json",
) -> Schema:
    """One operation: its request is schema `nameRequest`, its answer schema `name` as `kind`.

    A status of `more` answers with the same, and is no refusal.
    """
    content: Schema = {kind: {"schema": _reference(name)}}
    refusal: Schema = {"application/json": {"schema": _reference("Error")}}
    errors = {
        status: {"description": said, "content": refusal} for status, said in _STATUSES.items()
    }
    if more is not None:
        errors[more] = {"description": summary, "content": content}
    answered = dict(content)
    if name in ("Completion", "ChatCompletion"):
        answered["text/event-stream"] = {}  # OpenAPI 3.1 has no schema of events
    operation: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "The answer", "content": answered}, **errors},
    }
    if name in ("Health", "Ready"):
        operation["security"] = []
    if body:
        asked = {"application/json": {"schema": _reference(f"{name}Request")}}
        operation["requestBody"] = {"required": True, "content": asked}
    return operation


def _requests(served: Served, settings: Settings) -> Schema:
    token = {**_WHOLE, "minimum": 0, "maximum": served.vocab_size - 1}
    ids = {"type": "array", "items": token, "minItems": 1}
    messages = _list(_message(), least=1)
    common = _common(served, token)
    most = min(job.MAX_PROMPTS, settings.queue)
    return {
        "CompletionRequest": _body(
            {
                "prompt": {"anyOf": [_TEXT, ids, _list({"anyOf": [_TEXT, ids]}, 1, most)]},
                "logprobs": _whole(0, job.MAX_LOGPROBS),
                "echo": _FLAG,
                "add_special_tokens": _FLAG,
                "max_tokens": _whole(0, served.context),
                **common,
            },
            ["model", "prompt"],
        ),
        "ChatCompletionRequest": _body(
            {
                "messages": messages,
                "logprobs": _FLAG,
                "top_logprobs": _whole(0, job.MAX_LOGPROBS),
                "max_completion_tokens": _whole(1, served.context),
                "max_tokens": _whole(1, served.context),
                **common,
            },
            ["model", "messages"],
        ),
        "TokenizeRequest": {
            **_body(
                {
                    "prompt": _TEXT,
                    "messages": messages,
                    "add_special_tokens": _FLAG,
                    "return_token_strs": _FLAG,
                },
                [],
            ),
            "oneOf": [
                {"properties": {name: given}, "required": [name]}
                for name, given in (("prompt", _TEXT), ("messages", messages))
            ],
        },
        "DetokenizeRequest": _body({"tokens": {"type": "array", "items": token}}, ["tokens"]),
    }


def _common(served: Served, token: Schema) -> Schema:
    """Fields of both kinds of answers."""
    stop = {**_TEXT, "maxLength": job.MAX_STOP_CHARACTERS}
    return {
        "model": {"enum": [*served.names]},
        "n": _whole(1, job.MAX_N),
        "best_of": _whole(1, job.MAX_N),
        "temperature": _number(0, 2),
        "top_p": _number(0, 1),
        "top_k": _whole(-1, 2**31 - 1),
        "seed": _whole(-(2**63), 2**63 - 1),
        "stop": {"anyOf": [stop, _list(_or_null(stop), most=job.MAX_STOPS)]},
        "stop_token_ids": _list(token, most=job.MAX_STOP_IDS),
        "ignore_eos": _FLAG,
        "presence_penalty": _number(-2, 2),
        "frequency_penalty": _number(-2, 2),
        "logit_bias": {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]+$"},
            "additionalProperties": _or_null(_number(-100, 100)),
            "maxProperties": job.MAX_BIASES,
        },
        "response_format": {
            "anyOf": [
                _record(type={"enum": ["text", "json_object"]}),
                _record(
                    type={"const": "json_schema"},
                    json_schema=_body(
                        {
                            "name": {**_TEXT, "maxLength": 64},
                            "schema": {"type": "object"},
                            "strict": _FLAG,
                        },
                        ["schema"],
                    ),
                ),
            ]
        },
        "stream": _FLAG,
        "stream_options": _body({"include_usage": _FLAG}, []),
        "return_tokens_as_token_ids": _FLAG,
        "user": {**_TEXT, "maxLength": 256},
        "cache_salt": {**_TEXT, "maxLength": 1024},
    }


def _message() -> Schema:
    part = _record(type={"const": "text"}, text=_TEXT)
    role = {"enum": ["system", "developer", "user", "assistant"]}
    return _record(role=role, content={"anyOf": [_TEXT, _list(part)]})


def _answers() -> Schema:
    usage = _record(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
    finish = {"enum": ["stop", "length"]}
    head = {"id": _TEXT, "created": _WHOLE, "model": _TEXT, "usage": usage}
    logprobs = _or_null({"type": "object"})
    said = _record(role={"const": "assistant"}, content=_TEXT)
    model = _record(
        id=_TEXT, object={"const": "model"}, created=_WHOLE, owned_by=_TEXT, max_model_len=_COUNT
    )
    return {
        "Completion": _record(
            **head,
            object={"const": "text_completion"},
            choices=_list(
                _record(index=_COUNT, text=_TEXT, logprobs=logprobs, finish_reason=finish)
            ),
        ),
        "ChatCompletion": _record(
            **head,
            object={"const": "chat.completion"},
            choices=_list(
                _record(index=_COUNT, message=said, logprobs=logprobs, finish_reason=finish)
            ),
        ),
        "Models": _record(object={"const": "list"}, data=_list(model)),
        "Model": model,
        "Tokenize": _record(count=_COUNT, max_model_len=_COUNT, tokens=_list(_COUNT)),
        "Detokenize": _record(prompt=_TEXT),
        "TokenizerInfo": _record(
            tokenizer_class=_TEXT, bos_token=_TEXT, eos_token=_TEXT, chat_template=_TEXT
        ),
        "Health": _record(status=_TEXT),
        "Ready": _record(status=_TEXT),
        "Metrics": _TEXT,
        "Document": {"type": "object"},
    }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _body(properties: Schema, required: list[str]) -> Schema:
    """An object whose fields may be null where they need not be there."""
    optional = {k: v if k in required else _or_null(v) for k, v in properties.items()}
    return {"type": "object", "properties": optional, "required": required}


def _record(**properties: Schema) -> Schema:
    """An object that has all of its fields."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _whole(low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(low: int, high: int) -> Schema:
    return {"type": "number", "minimum": low, "maximum": high}


def _list(items: Schema, least: int = 0, most: int | None = None) -> Schema:
    bound = {} if most is None else {"maxItems": most}
    return {"type": "array", "items": items, "minItems": least, **bound}
