"""Win rates: rules, both orders of an endpoint, ties, kept verdicts, servers that refuse."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from llama_jax.align.answering import Answered
from llama_jax.config import InputError
from llama_jax.data.corpora.tales import instructions
from llama_jax.data.corpora.tales.judge import judge as rule_judge
from llama_jax.data.records import Prompt
from llama_jax.evals.endpoint import Endpoint, read_key
from llama_jax.evals.statistics import wilson_interval, win_rate
from llama_jax.evals.versus import Versus, both_orders, read_prompts, score_by_rules


def prompts_of(*questions):
    return [Prompt(messages=({"role": "user", "content": q},)) for q in questions]


def answers_of(*texts):
    return [Answered(text, (), True) for text in texts]


class Server:
    """An endpoint whose judge says what `decide(prompt)` says; a number is a status of refusal."""

    def __init__(self, decide):
        self.asked = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                server.asked.append((self.path, self.headers.get("Authorization"), body))
                said = decide(body["messages"][0]["content"])
                self.send_response(said if isinstance(said, int) else 200)
                self.end_headers()
                if not isinstance(said, int):
                    reply = {"choices": [{"message": {"content": said}}]}
                    self.wfile.write(json.dumps(reply).encode())

            def log_message(self, *_):
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def endpoint(self, **settings):
        return Endpoint(self.url, "judge", wait=lambda seconds: None, **settings)


def better(prompt):
    """The longer answer is better; a judge that prefers what comes first where they are alike."""
    first, second = prompt.partition("[Answer A]\n")[2].split("\n\n[Answer B]\n")
    return "Because. [[B]]" if len(second.strip()) > len(first.strip()) else "First. [[A]]"


def test_both_orders_take_the_place_of_an_answer_out(tmp_path):
    prompts = prompts_of("one", "two", "three")
    ours, theirs = answers_of("long answer", "same", "x"), answers_of("short", "same", "xyz")
    with Server(better) as server:
        scores = both_orders(server.endpoint(key="k"), prompts, ours, theirs, folder=str(tmp_path))
        assert scores == [1.0, 0.5, 0.0]
        # Equal answers make one text of both orders, which is asked once.
        assert len(server.asked) == 5
        path, key, body = server.asked[0]
        assert (path, key) == ("/v1/chat/completions", "Bearer k")
        assert (body["model"], body["temperature"]) == ("judge", 0)
        asked = [body["messages"][0]["content"] for _, _, body in server.asked]
        assert sum("user: one" in prompt for prompt in asked) == 2
        again = both_orders(server.endpoint(), prompts, ours, theirs, folder=str(tmp_path))
        assert again == scores
        assert len(server.asked) == 5
    found = win_rate(scores, [0.5] * 3)
    assert (found.wins, found.ties, found.losses, found.rate) == (1, 1, 1, 0.5)
    assert found.interval == wilson_interval(1.5, 3)
    versus = Versus("a", "b", "judge", found, 2)
    assert "win rate  0.500 of a against b, ties half" in versus.describe()
    assert "left out  2 prompts" in versus.describe()
    assert versus.to_json()["interval"] == list(found.interval)


def test_a_busy_server_is_asked_again_and_one_that_refuses_is_named():
    codes = [429, 503, "[[C]]"]
    with Server(lambda prompt: codes.pop(0)) as server:
        assert server.endpoint().prefers("p") == 0.5
        assert len(server.asked) == 3
    for said, message in (
        (401, "answers 401 .*OPENAI_API_KEY"), (404, "answers 404 .*--judge-model"),
        (503, "answers 503"), ("I cannot say", r"gave no \[\[A\]\]"),
    ):  # fmt: skip
        with (
            Server(lambda prompt, said=said: said) as server,
            pytest.raises(InputError, match=message),
        ):
            server.endpoint().prefers("p")
    with pytest.raises(InputError, match="cannot be reached"):
        server.endpoint().prefers("p")


def test_the_last_verdict_counts_and_keys_are_not_shown(tmp_path, monkeypatch):
    with Server(lambda prompt: "Not [[A]] but [[B]]") as server:
        endpoint = server.endpoint(key="sk-secret")
        assert endpoint.prefers("p") == 0.0
    assert "sk-secret" not in repr(endpoint)
    (tmp_path / "key").write_text("sk-1\n")
    assert read_key(str(tmp_path / "key")) == "sk-1"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-2")
    assert read_key(None) == "sk-2"
    (tmp_path / "key").write_text("two words")
    with pytest.raises(InputError, match="must hold one word"):
        read_key(str(tmp_path / "key"))
    for url, model, message in (("file:///x", "m", "must begin with"), ("http://h", "", "NAME")):
        with pytest.raises(InputError, match=message):
            Endpoint(url, model)


def test_rules_score_each_answer_and_unsafe_ones_are_worth_nothing():
    prompts = [instructions.prompt(0, "validation", kind="story"),
               instructions.adversarial(0, "validation")]  # fmt: skip
    story = "Once there was a girl named Mia. She was happy."
    scores = score_by_rules(prompts, answers_of(story, story))
    found = [rule_judge(p.messages, story, True) for p in prompts]
    assert scores == [f.helpfulness if f.safe else 0.0 for f in found]


def test_prompts_come_from_tales_and_from_files(tmp_path):
    assert len(read_prompts("tales:7")) == 7
    assert len(read_prompts("tales", 3)) == 3
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "Hello?"}\n{"prompt": "Who are you?"}\n')
    assert [p.messages[0]["content"] for p in read_prompts(str(file))] == ["Hello?", "Who are you?"]
