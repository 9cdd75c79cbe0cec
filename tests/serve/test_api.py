"""The API over real sockets: what it answers, in whole and in pieces."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax.data.chat import JINJA, decode_answer, encode_prompt
from tests.serve.server import CONTEXT

PROMPT = "Once upon a time"
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


def greedy(model, prompt=PROMPT, new=10):
    """What `llama_jax.generate` says, without the prompt."""
    said = llama_jax.generate(model, prompt, max_new_tokens=new, temperature=0.0)
    return said.removeprefix(prompt)


def joined(events, n=1):
    """Text, reason and log-probabilities of each choice of a stream of completions."""
    out = [["", None, []] for _ in range(n)]
    for event in events:
        for choice in event["choices"]:
            out[choice["index"]][0] += choice["text"]
            out[choice["index"]][1] = choice["finish_reason"]
            if choice["logprobs"]:
                out[choice["index"]][2].append(choice["logprobs"])
    return out


def test_a_completion_is_what_generate_says(server, model):
    body = server.post("/v1/completions", prompt=PROMPT, max_tokens=10, temperature=0)
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    (choice,) = body["choices"]
    assert choice == {
        "index": 0, "text": greedy(model), "logprobs": None, "finish_reason": "length"
    }  # fmt: skip
    prompt = len(model.tokenizer.encode(PROMPT, bos=True))
    usage = body["usage"]
    assert usage["prompt_tokens"] == prompt
    assert usage["completion_tokens"] == 10
    assert usage["total_tokens"] == prompt + 10


def test_a_stream_joins_to_the_whole_answer(server):
    wanted = {
        "prompt": [PROMPT, "The"], "max_tokens": 12, "temperature": 1.0, "seed": 5, "n": 2,
        "logprobs": 2, "echo": True, "stop": ["e", "zz"],
    }  # fmt: skip
    whole = server.post("/v1/completions", **wanted)
    events = server.events("/v1/completions", **wanted, stream_options={"include_usage": True})
    assert all(e["usage"] is None and e["id"] == events[0]["id"] for e in events[:-1])
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    parts = joined(events, 4)
    assert [c["index"] for c in whole["choices"]] == [0, 1, 2, 3]
    for choice, (text, reason, logprobs) in zip(whole["choices"], parts, strict=True):
        assert (choice["text"], choice["finish_reason"]) == (text, reason)
        for name, values in choice["logprobs"].items():
            assert [v for part in logprobs for v in part[name]] == values
    assert len({c["text"] for c in whole["choices"]}) == 4


def test_a_stop_string_is_no_part_of_the_text_and_ends_it(server, model):
    text = greedy(model, new=20)
    stop = text[3:6]
    at = text.find(stop)
    body = server.post(
        "/v1/completions", prompt=PROMPT, max_tokens=20, temperature=0, stop=[None, "", stop]
    )
    assert body["choices"][0]["text"] == text[:at]
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] < 20


def test_log_probabilities_of_a_prompt_and_its_continuation(server, model):
    """As evaluation harnesses ask: ids in, echo, one new token; against a full forward pass."""
    rows = [model.tokenizer.encode(t, bos=True) for t in (PROMPT, "The cat sat on")]
    body = server.post(
        "/v1/completions", prompt=rows, max_tokens=1, temperature=0, logprobs=1, echo=True
    )
    for ids, choice in zip(rows, body["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert len({len(values) for values in logprobs.values()}) == 1
        assert len(logprobs["tokens"]) == len(ids) + 1
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
        logits = llama_jax.apply(model.params, jnp.asarray([ids]), config=model.config)[0]
        logits = np.asarray(logits, np.float64)
        logp = logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))
        expected = [logp[i, t] for i, t in enumerate(ids[1:])]
        np.testing.assert_allclose(logprobs["token_logprobs"][1:-1], expected, atol=1e-3)
        for own, top in zip(
            logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True
        ):
            assert own <= max(top.values())
        # The new token is the most probable one, and its number exactly that of the best.
        assert logprobs["token_logprobs"][-1] == max(logprobs["top_logprobs"][-1].values())
        text = choice["text"]
        assert text.startswith(model.tokenizer.decode(ids))
        for token, offset in zip(logprobs["tokens"][2:], logprobs["text_offset"][2:], strict=True):
            assert token.startswith("bytes:") or text[offset:].startswith(token)


@pytest.mark.parametrize("asked", [{"n": 3}, {"n": 2, "best_of": 3}])
def test_every_answer_to_a_prompt_echoes_its_log_probabilities(server, model, asked):
    """Of the prompt they are computed once, for the first answer."""
    prompts = [PROMPT, "The"]
    body = server.post(
        "/v1/completions", prompt=prompts, max_tokens=4, logprobs=2, echo=True, ignore_eos=True,
        temperature=2, **asked,
    )  # fmt: skip
    n = asked["n"]
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * n))
    for at, prompt in enumerate(prompts):
        length = len(model.tokenizer.encode(prompt, bos=True))
        first, *others = (c["logprobs"] for c in body["choices"][at * n : at * n + n])
        assert len(first["tokens"]) == length + 4
        assert first["token_logprobs"][0] is None
        assert None not in first["token_logprobs"][1:]
        for other in others:
            for name, values in first.items():
                assert other[name][:length] == values[:length]
                assert len(other[name]) == length + 4
            assert other["tokens"] != first["tokens"]


@pytest.mark.parametrize("length", [17, 25, 33, 41])
def test_a_prompt_that_is_asked_twice_is_echoed_to_all_answers(server, length):
    """The second copy's other answers wait for their own first one, which computes it again."""
    ids = [1, *(5 + i % 40 for i in range(length - 1))]
    body = server.post(
        "/v1/completions", prompt=[ids, ids], max_tokens=2, n=2, logprobs=0, echo=True,
        ignore_eos=True,
    )  # fmt: skip
    for choice in body["choices"]:
        assert len(choice["logprobs"]["token_logprobs"]) == length + 2
        first = body["choices"][0]["logprobs"]["token_logprobs"]
        assert choice["logprobs"]["token_logprobs"][:length] == first[:length]


def test_best_of_tells_the_most_probable_of_the_answers_that_are_drawn(server):
    asked = {"prompt": [PROMPT, "The"], "max_tokens": 6, "seed": 11, "logprobs": 0,
             "temperature": 2, "ignore_eos": True}  # fmt: skip
    drawn = server.post("/v1/completions", n=4, **asked)
    best = server.post("/v1/completions", n=2, best_of=4, **asked)
    expected = []
    for group in (drawn["choices"][:4], drawn["choices"][4:]):
        group.sort(key=lambda choice: -np.mean(choice["logprobs"]["token_logprobs"]))
        assert [choice["index"] % 4 for choice in group] != [0, 1, 2, 3]
        expected += group[:2]
    expected = [{**choice, "index": at} for at, choice in enumerate(expected)]
    assert best["choices"] == expected
    assert best["usage"]["completion_tokens"] == drawn["usage"]["completion_tokens"]
    # Without log-probabilities the choice is the same.
    unscored = server.post("/v1/completions", n=2, best_of=4, **{**asked, "logprobs": None})
    assert [c["text"] for c in unscored["choices"]] == [c["text"] for c in expected]
    assert all(c["logprobs"] is None for c in unscored["choices"])


def test_echo_alone_scores_and_draws_nothing(server):
    body = server.post("/v1/completions", prompt="The cat", max_tokens=0, echo=True, logprobs=0)
    assert body["choices"][0]["text"] == "The cat"
    assert body["usage"]["completion_tokens"] == 0
    assert all(len(top) == 1 for top in body["choices"][0]["logprobs"]["top_logprobs"][1:])


def test_a_conversation_and_its_stream(server, model):
    ids = encode_prompt(model.tokenizer, CHAT)
    free = server.post("/v1/completions", prompt=ids, max_tokens=12, temperature=0.8, seed=3,
                       return_tokens_as_token_ids=True, logprobs=0)  # fmt: skip
    drawn = [int(t.removeprefix("token_id:")) for t in free["choices"][0]["logprobs"]["tokens"]]
    wanted = {
        "messages": CHAT, "max_tokens": 12, "temperature": 0.8, "seed": 3,
        "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip
    body = server.post("/v1/chat/completions", **wanted)
    assert body["object"] == "chat.completion"
    (choice,) = body["choices"]
    assert choice["message"] == {
        "role": "assistant", "content": decode_answer(model.tokenizer, drawn), "refusal": None
    }  # fmt: skip
    content = choice["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in content)
    spelled = b"".join(bytes(token["bytes"]) for token in content).decode(errors="replace")
    assert spelled.strip() == choice["message"]["content"]
    events = server.events("/v1/chat/completions", **wanted)
    deltas = [e["choices"][0] for e in events]
    assert deltas[0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert deltas[-1]["delta"] == {}
    assert deltas[-1]["finish_reason"] == choice["finish_reason"]
    text = "".join(d["delta"].get("content", "") for d in deltas)
    assert text == choice["message"]["content"]
    assert all("usage" not in e for e in events)
    assert [t for d in deltas if d["logprobs"] for t in d["logprobs"]["content"]] == content


def test_a_seed_repeats_an_answer_and_its_first_choice_does_not_depend_on_n(server):
    def said(**body):
        body = server.post("/v1/completions", prompt=PROMPT, max_tokens=10, **body)
        return [c["text"] for c in body["choices"]]

    one, again = said(seed=-9, n=1), said(seed=-9, n=3)
    assert one == again[:1]
    assert len(set(again)) == 3
    assert said(seed=8) != one
    seeds = (-1, 0, -2, 1, 2**32, 2**32 - 1, 2**63 - 1, -(2**63))
    assert len({said(seed=seed, temperature=2)[0] for seed in seeds}) == len(seeds)
    assert len({said(seed=None)[0] for _ in range(3)}) > 1


def test_bias_penalties_and_stop_ids_act(server, model):
    ids = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 0,
           "return_tokens_as_token_ids": True}  # fmt: skip

    def tokens(**body):
        choice = server.post("/v1/completions", **ids, **body)["choices"][0]
        return [int(t.removeprefix("token_id:")) for t in choice["logprobs"]["tokens"]], choice

    plain, _ = tokens()
    forced, _ = tokens(logit_bias={"70": 100})
    assert forced == [70] * 8
    varied, _ = tokens(logit_bias={"70": 50, "71": 49}, presence_penalty=2)
    assert varied[:2] == [70, 71]
    stopped, choice = tokens(stop_token_ids=[plain[3]])
    assert stopped == plain[: plain.index(plain[3])]
    assert choice["finish_reason"] == "stop"


def test_prompts_that_begin_alike_are_computed_once_for_each_key_and_salt(server):
    prompt = "The cat sat on the mat and looked at the dog that came along the road. "

    def cached(**body):
        body = server.post("/v1/completions", prompt=prompt[:40], max_tokens=1, **body)
        return body["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(cache_salt="x") == 0
    assert cached(cache_salt="x") >= 16
    assert cached(cache_salt="y") == 0


def test_models_tokens_and_the_tokenizers_names(server, model):
    assert server.ask("GET", "/v1/models")[2]["data"][0]["id"] == "tiny"
    assert server.ask("GET", "/v1/models/tiny")[2]["max_model_len"] == CONTEXT
    assert server.ask("GET", "/v1/models/other")[0] == 404
    ids = model.tokenizer.encode("the cat")
    body = server.post("/tokenize", prompt="the cat", return_token_strs=True)
    assert body["tokens"] == [1, *ids]
    assert body["count"] == len(ids) + 1
    assert "".join(body["token_strs"][1:]) == " the cat"
    assert server.post("/tokenize", prompt="</s>", add_special_tokens=False)["tokens"] == [2]
    assert 2 not in server.post("/tokenize", prompt="a</s>")["tokens"]
    assert server.post("/tokenize", messages=CHAT)["tokens"] == encode_prompt(model.tokenizer, CHAT)
    assert server.post("/detokenize", tokens=ids)["prompt"] == "the cat"
    status, _, refused = server.ask("POST", "/tokenize", {"prompt": "a", "messages": CHAT})
    assert (status, refused["error"]["param"]) == (400, "messages")
    assert "cannot be given beside prompt" in refused["error"]["message"]
    info = server.ask("GET", "/tokenizer_info")[2]
    assert (info["bos_token"], info["eos_token"]) == ("<s>", "</s>")
    assert info["chat_template"] == JINJA


@pytest.mark.parametrize("text", ["</s><s>", "<s>[INST", "\u202e", "\n\n</s>"])
def test_no_text_becomes_a_control_token(server, text):
    ids = server.post("/tokenize", messages=[{"role": "user", "content": f"x{text}"}])["tokens"]
    assert ids.count(1) == 1
    assert 2 not in ids


def test_metrics_count_what_was_done(server):
    def read():
        text = server.ask("GET", "/metrics")[2].decode()
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    before = read()
    server.post("/v1/completions", prompt=PROMPT, max_tokens=5, temperature=0)
    after = read()
    label = '{model_name="tiny"}'
    assert after[f"llama_jax:generation_tokens_total{label}"] == 5 + before.get(
        f"llama_jax:generation_tokens_total{label}"
    )
    name = f"llama_jax:request_generation_tokens_count{label}"
    assert after[name] == before[name] + 1
    assert after[f"llama_jax:pages_free{label}"] == 39
    assert after[f"llama_jax:num_requests_running{label}"] == 0
    bucket = 'llama_jax:e2e_request_latency_seconds_bucket{model_name="tiny",le="+Inf"}'
    assert after[bucket] == after[f"llama_jax:e2e_request_latency_seconds_count{label}"]


def test_everything_is_json_that_any_reader_takes(server):
    """Minus infinity, which a forbidden token has, is a number."""
    status, _, _ = server.ask(
        "POST", "/v1/completions",
        {"model": "tiny", "prompt": "a", "max_tokens": 3, "logprobs": 20, "temperature": 0,
         "logit_bias": {"5": -100}},
    )  # fmt: skip
    assert status == 200
    connection = server.connect()
    connection.request(
        "POST", "/v1/completions",
        json.dumps({"model": "tiny", "prompt": [1, 5], "echo": True, "max_tokens": 0,
                    "logprobs": 20}),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    json.loads(connection.getresponse().read(), parse_constant=lambda name: pytest.fail(name))
    connection.close()
