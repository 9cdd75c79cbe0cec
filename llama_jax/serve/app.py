"""HTTP routes: access, request bodies and responses."""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from llama_jax.config import InputError
from llama_jax.data.chat import JINJA
from llama_jax.runtime.files import shown
from llama_jax.serve import job as jobs
from llama_jax.serve.errors import ApiError, invalid
from llama_jax.serve.fields import Fields, parse_body
from llama_jax.serve.openapi import document
from llama_jax.serve.replies import Choice, Delta, Reply
from llama_jax.serve.service import Service
from llama_jax.serve.text import token_text

logger = logging.getLogger(__name__)
BODY_SECONDS, PING_SECONDS, STALLED_READER_SECONDS = 30.0, 15.0, 60.0
IDLE_SECONDS = 75.0
"""A connection that has brought no whole head of a request for so long is closed."""
_FILES = ("page.css", "api.js", "store.js", "tokens.js", "page.js")
PAGE = {"/": "index.html", **{f"/{name}": name for name in _FILES}}
PUBLIC = {"/health", "/ready", *PAGE}
"""Paths that need no key."""
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SAFE = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _without_its_bytes(record: logging.LogRecord) -> bool:
    """A request that is no HTTP is one line: aiohttp would log its bytes, which may be a key."""
    if record.exc_info and isinstance(record.exc_info[1], HttpProcessingError):
        record.msg, record.args, record.exc_info = "a request was no HTTP: 400", (), None
        record.levelno, record.levelname = logging.INFO, "INFO"
    return True


_http_logger = logging.getLogger(f"{__name__}.http")
_http_logger.addFilter(_without_its_bytes)


def runner(service: Service) -> web.AppRunner:
    """Runner of the routes of a service. A client that goes away cancels its handler."""
    return web.AppRunner(
        Api(service).app(),
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=IDLE_SECONDS,
        logger=_http_logger,
    )


class Api:
    """The handlers of one service."""

    def __init__(self, service: Service):
        self.service, self.settings, self.served = service, service.settings, service.served
        self.created = int(time.time())

    def app(self) -> web.Application:
        """The application with all its routes."""
        app = web.Application(middlewares=[self.guard], client_max_size=self.settings.body_bytes)
        app.router.add_post("/v1/completions", self.completions)
        app.router.add_post("/v1/chat/completions", self.chat_completions)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{name:.+}", self.model)
        app.router.add_post("/tokenize", self.tokenize)
        app.router.add_post("/detokenize", self.detokenize)
        app.router.add_get("/tokenizer_info", self.tokenizer_info)
        app.router.add_get("/openapi.json", self.openapi)
        app.router.add_get("/health", self.health)
        app.router.add_get("/ready", self.ready)
        app.router.add_get("/metrics", self.metrics)
        for path in PAGE:
            app.router.add_get(path, self.page)
        return app

    # ---- Every request

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware that checks access, and turns refusals into OpenAI's error objects."""
        number, begun = secrets.token_hex(8), time.monotonic()
        try:
            self._admit(request)
            response = await handler(request)
        except ApiError as error:
            response = _json(error.body, error.status, error.headers)
        except web.HTTPException as error:
            response = _refusal(request, error)
        except asyncio.CancelledError:
            self._log(request, 499, begun)
            raise
        except ConnectionError:
            # The reader went while it was written to: raised again, it would be logged as one.
            response = web.Response(status=499)
        except Exception:
            logger.exception("request %s failed", number)
            failed = ApiError(500, f"Request {number} failed.", kind="server_error")
            response = _json(failed.body, 500)
        if not response.prepared:
            response.headers["X-Request-Id"] = number
        self._log(request, response.status, begun)
        return response

    def _admit(self, request: web.Request) -> None:
        if not self.settings.is_called(request.host):
            raise ApiError(
                403, f"This server is not called {shown(request.host)}.", kind="permission_error"
            )
        origin = request.headers.get("Origin")
        if origin is not None and not _is_page_of(origin, request.host):
            raise ApiError(
                403, f"Pages of {shown(origin)} may not use this server.", kind="permission_error"
            )
        if self.settings.keys and request.path not in PUBLIC and self._key(request) is None:
            raise ApiError(
                401,
                "This server needs an API key: Authorization: Bearer KEY.",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _key(self, request: web.Request) -> bytes | None:
        return self.settings.key_of(request.headers.get("Authorization", ""))

    def _log(self, request: web.Request, status: int, begun: float) -> None:
        """One line; no text of anybody's, and nothing that could pass for another line."""
        path = request.path if request.path.isascii() and request.path.isprintable() else "?"
        seconds = time.monotonic() - begun
        level = logging.DEBUG if path in PUBLIC or path == "/metrics" else logging.INFO
        logger.log(level, "%s %.80s %d %.3f s", request.method, path, status, seconds)

    async def _fields(self, request: web.Request) -> Fields:
        if request.content_type != "application/json":
            raise ApiError(
                415, f"The body must be application/json, not {shown(request.content_type)}."
            )
        try:
            async with asyncio.timeout(BODY_SECONDS):
                content = await request.read()
        except TimeoutError as error:
            raise ApiError(408, f"The body took more than {BODY_SECONDS:g} s.") from error
        return await asyncio.to_thread(parse_body, content)

    # ---- Answers

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        return await self._answer(request, jobs.completion)

    async def chat_completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        return await self._answer(request, jobs.chat_completion)

    async def _answer(self, request: web.Request, make: Callable[..., jobs.Job]):
        fields = await self._fields(request)
        self.service.require_ready()
        scope = self._key(request) or b""
        try:
            job = await asyncio.to_thread(make, fields, self.served, scope)
        except ApiError:
            self.service.metrics.refused["invalid"] += 1
            raise
        reply = Reply(job, job.model, self.served.tokenizer)
        with self.service.answering(job, reply) as news:
            if job.stream:
                return await self._stream(request, reply, news)
            whole = {choice: Delta() for choice in reply.choices}
            async for choice, delta in news:
                part = whole[choice]
                part.text += delta.text
                part.entries += delta.entries
                part.finish = delta.finish
        return _json(reply.whole(list(whole.values())))

    async def _stream(self, request: web.Request, reply: Reply, news: Any) -> web.StreamResponse:
        """Server-sent events. What fails from here on is an event too, and [DONE] does not come."""
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
                "X-Request-Id": reply.id,
            }
        )
        await response.prepare(request)
        begun: set[Choice] = set()

        async def send(content: str) -> None:
            async with asyncio.timeout(STALLED_READER_SECONDS):
                await response.write(content.encode())

        async def ping() -> None:
            while True:
                await asyncio.sleep(PING_SECONDS)
                await send(": ping\n\n")

        pinging = asyncio.create_task(ping())
        try:
            async for choice, delta in news:
                chunks = reply.chunks(choice, delta)
                if choice not in begun:
                    begun.add(choice)
                    chunks = [c for c in (reply.first(choice),) if c is not None] + chunks
                if chunks:
                    await send("".join(map(_event, chunks)))
            last = reply.last()
            await send(("" if last is None else _event(last)) + "data: [DONE]\n\n")
        except ApiError as error:
            await send(_event(error.body))
        except TimeoutError:
            logger.info("a reader that took nothing for %g s is gone", STALLED_READER_SECONDS)
            response.force_close()
        finally:
            pinging.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pinging
        return response

    # ---- The model

    def _card(self, name: str) -> dict[str, Any]:
        parent = {} if name == self.served.name else {"parent": self.served.name}
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "llama_jax",
            "max_model_len": self.served.context,
            **parent,
        }

    async def models(self, _: web.Request) -> web.Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": [*map(self._card, self.served.names)]})

    async def model(self, request: web.Request) -> web.Response:
        """GET /v1/models/NAME."""
        fields = Fields({"model": request.match_info["name"]})
        return _json(self._card(jobs.named_model(fields, self.served)))

    async def tokenize(self, request: web.Request) -> web.Response:
        """POST /tokenize: a text or a conversation as ids.

        The name of a control token, and nothing else, is that token's id: programs ask for it so.
        """
        fields = await self._fields(request)
        return _json(await asyncio.to_thread(self._tokenized, fields))

    def _tokenized(self, fields: Fields) -> dict[str, Any]:
        tokenizer, text = self.served.tokenizer, fields.text("prompt", None, 2**31)
        if text is not None and fields.get("messages") is not None:
            raise invalid("messages", "cannot be given beside prompt: give one of them")
        special = fields.flag("add_special_tokens", True)
        control = {tokenizer.piece(i): i for i in (tokenizer.bos_id, tokenizer.eos_id)}
        if text is None:
            ids = jobs.chat_ids(fields, self.served)
        elif text in control:
            ids = [*([tokenizer.bos_id] if special else []), control[text]]
        else:
            ids = jobs.text_ids(text, self.served, "prompt", special=special)
        body = {"count": len(ids), "max_model_len": self.served.context, "tokens": ids}
        wanted = fields.flag("return_token_strs")
        return {**body, "token_strs": [token_text(tokenizer, i) for i in ids] if wanted else None}

    async def detokenize(self, request: web.Request) -> web.Response:
        """POST /detokenize: ids as text."""
        fields = await self._fields(request)
        given = fields.get("tokens")
        if not isinstance(given, list):
            raise invalid("tokens", f"must be a list of token ids, not {shown(given)}")
        ids = jobs.token_ids(given, self.served, "tokens")
        try:
            return _json({"prompt": await asyncio.to_thread(self.served.tokenizer.decode, ids)})
        except InputError as error:
            raise invalid("tokens", f"cannot be decoded: {error}") from error

    async def tokenizer_info(self, _: web.Request) -> web.Response:
        """GET /tokenizer_info, which lm-eval reads."""
        tokenizer = self.served.tokenizer
        return _json(
            {
                "tokenizer_class": "LlamaTokenizer",
                "bos_token": tokenizer.piece(tokenizer.bos_id),
                "eos_token": tokenizer.piece(tokenizer.eos_id),
                "pad_token": None,
                "chat_template": JINJA,
            }
        )

    # ---- The server

    async def openapi(self, _: web.Request) -> web.Response:
        """GET /openapi.json: this API, as OpenAPI describes one."""
        return _json(document(self.served, self.settings))

    async def health(self, _: web.Request) -> web.Response:
        """GET /health: whether the process and its device thread live."""
        healthy = self.service.healthy
        return _json({"status": "ok" if healthy else "stalled"}, 200 if healthy else 503)

    async def ready(self, _: web.Request) -> web.Response:
        """GET /ready: whether a request would be taken."""
        ready = self.service.ready
        return _json({"status": "ready" if ready else "not ready"}, 200 if ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        """GET /metrics, for Prometheus."""
        return web.Response(text=self.service.metrics_text(), content_type="text/plain")

    async def page(self, request: web.Request) -> web.Response:
        """The page to talk to the model, and its files."""
        name = PAGE[request.path]
        content = files("llama_jax.serve").joinpath("page", name).read_bytes()
        kind = _TYPES[name.rpartition(".")[2]]
        return web.Response(
            body=content, content_type=kind, charset="utf-8",
            headers={**_SAFE, "Cache-Control": "no-cache"},
        )  # fmt: skip


def _is_page_of(origin: str, host: str) -> bool:
    """Whether a page of this origin came from this host."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _json(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    headers = {"X-Content-Type-Options": "nosniff", **(headers or {})}
    return web.Response(
        text=json.dumps(body), status=status, headers=headers, content_type="application/json"
    )


def _refusal(request: web.Request, error: web.HTTPException) -> web.Response:
    """What aiohttp refuses, as OpenAI's error object."""
    path = shown(request.path)
    said = {
        404: f"There is no {path}.",
        405: f"{path} does not take {request.method}.",
        413: f"The body has more than {request.app._client_max_size:,} bytes.",
    }
    code = {413: "request_too_large", 404: "not_found"}.get(error.status)
    refused = ApiError(error.status, said.get(error.status, error.reason), code=code)
    kept = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
    response = _json(refused.body, error.status, kept)
    if error.status == 413:
        response.force_close()
    return response
