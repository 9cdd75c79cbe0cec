"""What schemathesis checks of each answer besides its own checks, for test_document.py.

schemathesis loads this module by the environment variable SCHEMATHESIS_HOOKS.
"""

import re

import schemathesis

# What a schema cannot say of a request, and the server refuses: relations between fields and
# prompts, what a tokenizer cannot encode, and what a grammar cannot enforce.
REASONS = re.compile(
    r"maximum context length is|"
    r"max_tokens must be at least 1, or 0 with echo|"
    r"top_logprobs needs logprobs|"
    r"stream_options needs stream|"
    r"asks for \d+ answers at once|"
    r"best_of must be |"
    r"logit_bias names |"
    r"response_format\.json_schema\.schema (cannot be enforced|has)|"
    r"response_format has a schema that is too complex|"
    r"The body is not valid JSON: a number of \d+ digits|"
    r"messages, message \d+: |messages.*(last message|take turns|holds|NUL)|"
    r"prompt.*NUL"
)


@schemathesis.check
def valid_data_is_taken_or_refused_for_a_reason(_, response, case):
    """In place of schemathesis's check that a schema's promise alone decides."""
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or response.status_code < 400:
        return
    if response.status_code in (404, 429) or (
        case.path == "/ready" and response.status_code == 503
    ):
        return
    assert response.status_code == 400, f"valid data, and the status is {response.status_code}"
    message = response.json()["error"]["message"]
    assert REASONS.search(message) or has_whole_float(case.body), f"refused: {message}"


@schemathesis.check
def refusals_are_error_objects(_, response, case):
    """What the document's schema of them leaves open."""
    if response.status_code >= 400 and case.path != "/ready":
        error = response.json()["error"]
        assert error["message"].strip(), "no message"
        assert error["type"] in {
            "invalid_request_error", "authentication_error", "permission_error", "rate_limit_error",
            "server_error", "service_unavailable", "timeout",
        }  # fmt: skip
        assert response.headers.get("x-request-id"), "no X-Request-Id"
        if response.status_code in (429, 503):
            assert int(response.headers["retry-after"][0]) > 0, "no Retry-After"


def has_whole_float(value) -> bool:
    """JSON Schema counts 1.0 as an integer; this server does not."""
    if isinstance(value, dict | list):
        return any(map(has_whole_float, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and value.is_integer()
