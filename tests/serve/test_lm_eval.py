"""EleutherAI's lm-evaluation-harness, unchanged, over HTTP: the numbers that it has in process.

Its tokenizer is the server's, and it sends ids without BOS, whatever the model's own prompts begin
with. The in-process model is told the same.
"""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llama_jax.convert.usage import Usage
from llama_jax.evals import harness
from llama_jax.evals.language_model import Request, Writing
from llama_jax.evals.model_under_test import ModelUnderTest
from tests.serve.test_clients import imported

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
COMPARISON = Path(__file__).parents[2] / "experiments/compare_harness.py"
BEGINS = ["The cat", "One day", "A dog", "the boy", "Once", "She said", "In the", "They"]
ENDS = ["sat.", "went home.", "was sad.", "ran."]


@pytest.fixture(scope="module")
def lm_eval(tmp_path_factory):
    """The package, which asks nobody for anything."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.delenv("OPENAI_API_KEY", raising=False)
        yield imported("lm_eval")


@pytest.fixture(scope="module")
def literal(model):
    """Prompts are the ids of the text alone."""
    return ModelUnderTest(replace(model, usage=Usage(add_bos=False)), rows=4)


def tasks_of(folder, answers, chosen):
    """Three tasks: answers and choices of which every other one is the model's, and whole texts."""
    rows = {
        "choice": [
            {"question": begin, "choices": ENDS, "gold": (best + n % 2) % 4}
            for n, (begin, best) in enumerate(zip(BEGINS, chosen, strict=True))
        ],
        "generate": [
            {"begin": begin, "end": said if n % 2 else "x"}
            for n, (begin, said) in enumerate(zip(BEGINS, answers, strict=True))
        ],
        "perplexity": [
            {"page": f"{begin} {end}"} for begin, end in zip(BEGINS, ENDS * 2, strict=True)
        ],
    }
    for name, values in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    choice, generate, perplexity = runpy.run_path(str(COMPARISON))["theirs"](folder)
    generate["generation_kwargs"] |= {"max_gen_toks": 12, "until": ["."]}
    return choice, generate, perplexity


def answered(under_test, **how):
    """What the model says to each beginning, without the space around it."""
    writing = Writing(max_new_tokens=12, until=(".",), **how)
    found = dict(under_test.answers(list(enumerate(BEGINS)), writing))
    return [found[n][0].text.strip() for n in range(len(BEGINS))]


def likeliest(under_test):
    """Which end the model would choose for each beginning."""
    asked = [Request(f"Question: {begin}\nAnswer:", f" {end}") for begin in BEGINS for end in ENDS]
    found = dict(under_test.likelihoods(asked))
    logp = np.array([found[n].logp for n in range(len(asked))]).reshape(len(BEGINS), -1)
    return logp.argmax(1).tolist()


def evaluated(lm_eval, model, tasks, **settings):
    """Numbers by task, and what was said or how likely it was, question by question."""
    found = lm_eval.simple_evaluate(
        model=model, tasks=list(tasks), log_samples=True, bootstrap_iters=0, **settings
    )
    numbers = {
        (task, name.split(",")[0]): value
        for task, values in found["results"].items()
        for name, value in values.items()
        if isinstance(value, float) and "stderr" not in name
    }
    said = {
        task: [s["filtered_resps"] for s in sorted(samples, key=lambda s: s["doc_id"])]
        for task, samples in found["samples"].items()
    }
    return numbers, said


def over_http(server, route, **more):
    return {
        "model_args": {
            "base_url": f"http://127.0.0.1:{server.port}/v1/{route}", "model": "tiny",
            "max_length": 64, "num_concurrent": 2, "max_retries": 1, **more,
        }
    }  # fmt: skip


def test_completions_give_the_numbers_of_the_model_in_this_process(
    lm_eval, server, literal, tmp_path, caplog
):
    tasks = tasks_of(tmp_path, answered(literal), likeliest(literal))
    expected, said = evaluated(lm_eval, harness.adapt(literal), tasks)
    settings = over_http(server, "completions")
    numbers, heard = evaluated(lm_eval, "local-completions", tasks, batch_size=2, **settings)
    assert "truncat" not in caplog.text
    assert set(numbers) == set(expected)
    assert numbers["generate", "exact_match"] == expected["generate", "exact_match"] == 0.5
    assert numbers["choice", "acc"] == expected["choice", "acc"] == 0.5
    assert numbers["choice", "acc_norm"] == expected["choice", "acc_norm"]
    for name in ("word_perplexity", "byte_perplexity"):
        ours, theirs = (np.log(found["perplexity", name]) for found in (expected, numbers))
        np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    assert heard["generate"] == said["generate"]
    for one, other in zip(heard["choice"], said["choice"], strict=True):
        assert [greedy for _, greedy in one] == [greedy for _, greedy in other]
        np.testing.assert_allclose([p for p, _ in one], [p for p, _ in other], rtol=1e-5)


def test_chat_completions_give_the_answers_of_the_model_in_this_process(
    lm_eval, server, literal, tmp_path, monkeypatch
):
    answers = answered(literal, chat=True)
    tasks = [tasks_of(tmp_path, answers, [0] * len(BEGINS))[1]]
    plain = harness._writing
    monkeypatch.setattr(harness, "_writing", lambda said: replace(plain(said), chat=True))
    expected, said = evaluated(lm_eval, harness.adapt(literal), tasks)
    settings = over_http(server, "chat/completions")
    numbers, heard = evaluated(
        lm_eval, "local-chat-completions", tasks, apply_chat_template=True, **settings
    )
    assert numbers == expected == {("generate", "exact_match"): 0.5}
    assert [one.strip() for [one] in heard["generate"]] == answers
    assert [one.strip() for [one] in said["generate"]] == answers
