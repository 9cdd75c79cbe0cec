"""Error responses in OpenAI's format, without the text of exceptions."""

from collections.abc import Mapping
from typing import Any


class ApiError(Exception):
    """A refusal: HTTP status, message, and the error object's type, code and parameter."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = {
            "error": {
                "message": message, "type": kind, "param": param, "code": code, **(more or {})
            }
        }  # fmt: skip


def invalid(param: str, message: str, code: str = "invalid_value") -> ApiError:
    """A field that cannot be used; the message begins with its name."""
    return ApiError(400, f"{param} {message}", code=code, param=param)


def unsupported(param: str, message: str) -> ApiError:
    """A field of the API that this server does not have."""
    return invalid(param, message, "unsupported_parameter")


def too_long(prompt: int, new: int, context: int, param: str) -> ApiError:
    """A prompt and its answer that the context does not hold. Clients look for these words."""
    message = (
        f"This model's maximum context length is {context} tokens. However, you requested "
        f"{prompt + new} tokens ({prompt} in the prompt, {new} for the completion). Please shorten "
        "the prompt, or ask for fewer tokens with max_tokens (max_gen_toks in lm-eval)."
    )
    return ApiError(
        400,
        message,
        code="context_length_exceeded",
        param=param,
        more={"n_prompt_tokens": prompt, "n_ctx": context},
    )


def retry_later(status: int, message: str, kind: str, code: str, seconds: int) -> ApiError:
    """A refusal of a request that may succeed at another time."""
    headers = {"Retry-After": str(seconds)}
    return ApiError(status, message, kind=kind, code=code, headers=headers)
