"""`response_format`: answers are JSON of the schema, or the schema is refused."""

import json

import pytest

from llama_jax.config import InputError
from llama_jax.serve.grammar import Grammars

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "maxLength": 3},
        "b": {"enum": ["yes", "no"]},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}
CHAT = [{"role": "user", "content": "Hi"}]


def format_of(schema):
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema}}


def nested(depth):
    return {"items": nested(depth - 1)} if depth else {}


@pytest.fixture(scope="module")
def grammars(model):
    return Grammars(model.tokenizer, [model.tokenizer.eos_id])


def conforms(text):
    value = json.loads(text)
    assert list(value) == ["a", "b"]
    assert len(value["a"]) <= 3
    assert value["b"] in ("yes", "no")


def test_the_tokens_that_some_answer_goes_on_with_are_allowed(grammars, model):
    """Against all answers of a schema that has four: all tokens where answers part, and the
    tokenizer's own where the text is certain."""
    answers = [b'"the"', b'"then"', b'"\xc3\xa9"', b"12"]
    grammar = grammars.compile({"enum": [json.loads(a) for a in answers]})()
    tokenizer, said, parted = model.tokenizer, b"", []
    spelled = {t: tokenizer.decode_bytes([t]) for t in range(tokenizer.vocab_size)}
    for byte in b'"then':
        words = grammar.allowed()
        allowed = {t for t in spelled if words[t // 32] >> (t % 32) & 1}
        going = [a[len(said) :] for a in answers if a.startswith(said)]
        expected = {t for t, piece in spelled.items() if piece and any_begins(going, piece)}
        parted.append(len({a[0] for a in going}) > 1)
        assert allowed == expected if parted[-1] else allowed <= expected
        token = 3 + byte
        if token not in allowed:  # what is certain has a token of its own
            (token,) = allowed
        assert grammar.take(token) is None
        said += spelled[token]
        if said == b'"the':
            break
    assert said == b'"the'
    assert parted[:2] == [True, True]


def any_begins(texts, piece):
    return any(text.startswith(piece) for text in texts)


def test_the_end_of_text_is_allowed_where_an_answer_may_end(grammars):
    grammar = grammars.compile({"type": "integer"})()
    end = 1 << 2
    assert not grammar.allowed()[0] & end
    assert grammar.take(3 + ord("7")) is None
    assert grammar.allowed()[0] & end
    assert grammar.take(2) == "stop"


def test_each_answer_has_a_grammar_of_its_own(grammars):
    make = grammars.compile({"enum": [1]})
    assert make().take(3 + ord("1")) == "stop"
    assert make().take(3 + ord("1")) == "stop"
    assert make().take(3 + ord("2")) == "stuck"


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_conversation_answers_in_json_of_the_schema(server, temperature):
    wanted = {"messages": CHAT, "temperature": temperature, "seed": 4, "max_tokens": 45,
              "response_format": format_of(SCHEMA)}  # fmt: skip
    body = server.post("/v1/chat/completions", **wanted, n=2)
    for choice in body["choices"]:
        assert choice["finish_reason"] == "stop"
        conforms(choice["message"]["content"])
    events = server.events("/v1/chat/completions", **wanted)
    text = "".join(e["choices"][0]["delta"].get("content", "") for e in events)
    assert text == body["choices"][0]["message"]["content"]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_completions_keep_to_it_too_and_end_at_their_limit(server):
    body = server.post(
        "/v1/completions", prompt=["Once", "The"], max_tokens=50, temperature=1.0, seed=3,
        response_format=format_of(SCHEMA), logprobs=1, echo=True,
    )  # fmt: skip
    for prompt, choice in zip(("Once", "The"), body["choices"], strict=True):
        assert choice["text"].startswith(prompt)
        conforms(choice["text"].removeprefix(prompt))
    cut = server.post(
        "/v1/completions", prompt="Once", max_tokens=3, seed=0, response_format=format_of(SCHEMA)
    )
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["choices"][0]["text"].lstrip().startswith("{")


def test_any_object_is_one(server):
    found = server.post(
        "/v1/completions", prompt="Once", max_tokens=50, temperature=0, stop=["}"],
        response_format={"type": "json_object"}, logit_bias={"128": 100},
    )["choices"][0]["text"]  # fmt: skip
    # 128 is the byte of `}`: an empty object, whose end is the stop string.
    assert found == "{"


@pytest.mark.parametrize(
    ("wanted", "param", "said"),
    [
        (3, "response_format", "must be an object"),
        ({"type": "xml"}, "response_format.type", "text, json_object or json_schema, not 'xml'"),
        ({"schema": {}}, "response_format.type", "text, json_object or json_schema, not None"),
        ({"type": "json_schema"}, "response_format.json_schema.schema", "a JSON schema, an object"),
        ({"type": "json_schema", "json_schema": 1}, "response_format.json_schema", "an object"),
        ({"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}},
         "response_format.json_schema.strict", "true or false"),
        (format_of([]), "response_format.json_schema.schema", "a JSON schema, an object"),
        (format_of({"type": "nonsense"}), "response_format.json_schema.schema", "cannot be enf"),
        (format_of({"not": {}}), "response_format.json_schema.schema", 'keys: ["not"]'),
        (format_of({"not": {}, "x-guidance": {"lenient": True}}),
         "response_format.json_schema.schema", 'keys: ["not"]'),
        (format_of({"$ref": "http://example.com/s"}), "response_format.json_schema.schema", "cann"),
        (format_of({"pattern": "(", "type": "string"}), "response_format.json_schema.schema", "un"),
        (format_of({"description": "x" * 40_000}), "response_format.json_schema.schema", "at most"),
        (format_of(nested(300)), "response_format.json_schema.schema", "recursion limit"),
    ],
)  # fmt: skip
def test_a_schema_that_cannot_be_enforced_is_refused(server, wanted, param, said):
    status, _, body = server.ask(
        "POST", "/v1/completions", {"model": "tiny", "prompt": "a", "response_format": wanted}
    )
    assert status == 400
    assert body["error"]["param"] == param
    assert said in body["error"]["message"]


def test_a_parser_that_gives_up_is_the_requests_fault(server, monkeypatch):
    monkeypatch.setattr("llama_jax.serve.grammar.JsonGrammar.allowed", lambda _: None)
    status, _, body = server.ask(
        "POST", "/v1/completions",
        {"model": "tiny", "prompt": "a", "response_format": {"type": "json_object"}},
    )  # fmt: skip
    assert (status, body["error"]["param"]) == (400, "response_format")


def test_without_its_package_it_is_refused_by_name(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(InputError, match="pip install llguidance"):
        Grammars(model.tokenizer, [2]).compile({})
